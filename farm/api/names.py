"""The names of batches and jobs in addresses, what other names may hold, cursors of listings."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from pydantic import AfterValidator

from farm.errors import InvalidInput, NotFound
from farm.spec.problems import refusal

Row = TypeVar("Row")

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_NUMBER = "(?:0|[1-9][0-9]{0,17})"
_BATCH = re.compile(_NUMBER)
_JOB = re.compile(f"({_NUMBER})-({_NUMBER})")
_CURSOR = re.compile(f"(.*)@({_NUMBER})", re.DOTALL)


def refuse_unstorable(text: str, field: str = "") -> str:
    """The text; InvalidInput for what JSON can say and Postgres cannot store."""
    if _UNSTORABLE.search(text):
        told = f"{field}: " if field else ""
        raise InvalidInput(
            f"{told}it contains a NUL character or half a surrogate pair.",
            field=field or None,
            value=text,
            remedy="Remove the characters U+0000 and U+D800 to U+DFFF.",
        )
    return text


def _storable(text: str) -> str:
    try:
        return refuse_unstorable(text)
    except InvalidInput as error:
        raise refusal(error) from None


Text = Annotated[str, AfterValidator(_storable)]
"""What Postgres can store."""


def no_batch(name: str) -> NotFound:
    return NotFound(
        f"There is no batch {_short(name)}.",
        field="batch",
        value=name,
        remedy="`farm ls` shows the batches.",
    )


def no_job(name: str) -> NotFound:
    return NotFound(
        f"There is no job {_short(name)}.",
        field="job",
        value=name,
        remedy="A job is named by its batch and its number in it, such as 12-0.",
    )


def no_worker(name: str | None) -> NotFound:
    return NotFound(
        f"There is no live worker {_short(name) if name else 'at all'}.",
        field="worker",
        value=name,
        remedy="`farm workers` shows those that are.",
    )


def batch_number(name: str) -> int:
    """The number of batch ``name``; NotFound for what cannot name one."""
    if not _BATCH.fullmatch(name):
        raise no_batch(name)
    return int(name)


def job_number(name: str) -> tuple[int, int]:
    """Batch and ord of job ``name``, such as ``12-3``; NotFound for what cannot name one."""
    found = _JOB.fullmatch(name)
    if not found:
        raise no_job(name)
    return int(found[1]), int(found[2])


def cursor(listing: str, position: int) -> str:
    """Where to go on in ``listing``, opaque to the client."""
    return base64.urlsafe_b64encode(f"{listing}@{position}".encode()).decode().rstrip("=")


def page(
    found: Sequence[Row], limit: int, at: Callable[[Row], str]
) -> tuple[Sequence[Row], str | None]:
    """The first ``limit`` of what was found, and the cursor ``at`` the last of them where more was:
    one row beyond the page is enough to know."""
    shown = found[:limit]
    return shown, at(shown[-1]) if len(found) > limit else None


def position(text: str, listing: str) -> int:
    """What :func:`cursor` was given; InvalidInput if it is damaged or of another listing."""
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        found = _CURSOR.fullmatch(plain.decode())
    except (binascii.Error, ValueError):
        found = None
    if not found or found[1] != listing:
        raise InvalidInput(
            "cursor: it does not belong to this listing.",
            field="cursor",
            value=text,
            remedy="Use `next_cursor` of the page before, with the same address and filters.",
        )
    return int(found[2])


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:40]}…"

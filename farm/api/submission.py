"""From a request to an accepted batch: everything is checked before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from farm.api import names
from farm.db import assets, batches, loading
from farm.db.batches import Accepted, NewBatch
from farm.db.database import Database
from farm.db.users import User
from farm.dispatch.means import Glance
from farm.dispatch.prospects import Jobs, prospects
from farm.errors import Forbidden, InvalidInput
from farm.spec.batch import BatchRequest, BatchSpec, freeze
from farm.spec.job import JobSpec
from farm.spec.kinship import check_batch
from farm.spec.listing import freeze_listed
from farm.spec.output import PNG, Output

_MAX_DEPTH = 8


def submit(
    db: Database,
    user: User,
    request: BatchRequest,
    key: tuple[str, bytes] | None,
    *,
    output: Output = PNG,
    quota: int | None = None,
    glance: Glance | None = None,
) -> tuple[Accepted, list[str]]:
    """Accept a batch once for each idempotency ``key``; ``output`` is for one that names none.

    Args:
        key: with the body that was sent, which the same key may only be used for again.
        quota: see :func:`farm.db.batches.accept`.
        glance: see :func:`farm.dispatch.prospects.prospects`.

    Returns:
        the batch, and what its owner should know, in sentences.

    Raises:
        Forbidden: the user may have no job in flight.
        InvalidInput: the request is wrong; names the field.
        DoesNotFit: no worker could make some of its jobs.
        Conflict: the key was used with another request.
        QuotaExceeded: too many of the user's jobs would wait.
    """
    refuse_unstorable(dict(request))
    new = NewBatch(
        user_id=user.id,
        name=request.name,
        priority=request.priority,
        tags=request.tags,
        output=request.output or output,
        idempotency_key=key and key[0],
        request_hash=key and fingerprint(key[1]),
    )
    # What was accepted once is: workers, checkpoints and quotas may be others by now.
    if key is not None and loading.used(db, user.id, key[0]):
        accepted = loading.repeated(db, new)
        notices: list[str] = []
        with suppress(InvalidInput):
            waiting = request.model_copy(update={"wait_for_worker": True})
            notices = waits_for(db, waiting, checked(db, request), glance=glance)
        return accepted, notices
    refuse_idle(user)
    frozen = checked(db, request)
    found = waits_for(db, request, frozen, glance=glance)
    spec = frozen if isinstance(frozen, BatchSpec) else None
    jobs = None if isinstance(frozen, BatchSpec) else frozen
    return batches.accept(db, replace(new, spec=spec, jobs=jobs), quota=quota), found


def fingerprint(body: bytes) -> bytes:
    """What tells requests apart: a JSON body but for its spaces and the order of its fields.

    What it leaves out is not filled in, else it would be another request to a version of Farm with
    other defaults or more fields.
    """
    plain = json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).digest()


def waits_for(
    db: Database, request: BatchRequest, jobs: Jobs, *, glance: Glance | None
) -> list[str]:
    """What some of the jobs will have to wait for, if anything, in sentences.

    Raises:
        InvalidInput, DoesNotFit: no worker that the farm knows could ever make some of them, and
            the request does not say that it waits for one.
    """
    found = prospects(db, jobs, request.tags, glance=glance)
    if found.refusal and not request.wait_for_worker:
        raise found.refusal
    told = found.refusal.message if found.refusal else found.notice
    return [told] if told else []


def checked(db: Database, request: BatchRequest) -> BatchSpec | list[JobSpec]:
    """The batch as it would run, or its listed jobs; InvalidInput names what is wrong."""
    refuse_unstorable(dict(request))
    known = assets.defaults(db)
    frozen = freeze(request, known) if request.jobs is None else freeze_listed(request, known)
    check_batch(frozen, assets.families(db))
    return frozen


def refuse_idle(user: User) -> None:
    """Raise Forbidden for whom nothing would ever run."""
    if user.max_in_flight == 0:
        raise Forbidden(
            f"{user.name} may have no job in flight: nothing of this batch would ever run.",
            field="user",
            value=user.name,
            remedy=f"An administrator may change that: farm share {user.name} --cap N",
        )


def refuse_unstorable(value: Any, field: str = "", depth: int = 0) -> None:
    """Raise InvalidInput for what JSON can say and Postgres cannot store, or nested too deeply."""
    if depth > _MAX_DEPTH:
        raise InvalidInput(f"{field[:80]}: nested too deeply.", field=field[:80])
    if isinstance(value, str):
        names.refuse_unstorable(value, field)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            refuse_unstorable(name, field or "body", depth)
            refuse_unstorable(part, f"{field}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list):
        for index, part in enumerate(value):
            refuse_unstorable(part, f"{field}[{index}]", depth + 1)

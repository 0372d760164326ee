"""Names that people may write in several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import BeforeValidator

from farm.errors import InvalidInput
from farm.spec.problems import refusal


def look_up(written: str, names: Mapping[str, str], *, kind: str, field: str) -> str:
    """The name that is written like this, in any case.

    Args:
        names: by each way to write them, in small letters.
        kind, field: what they are names of, and where they are given; for the error.

    Raises:
        InvalidInput: there is none.
    """
    known = names.get(" ".join(written.casefold().split()))
    if known is None:
        raise InvalidInput(
            f"There is no {kind} {written[:100]!r}.",
            field=field,
            value=written,
            remedy=f"Choose one of {', '.join(dict.fromkeys(names.values()))}.",
        )
    return known


def named(find: Callable[[str], str]) -> BeforeValidator:
    """A name that may be written in several ways; ``find`` raises InvalidInput for others."""

    def read(written: object) -> object:
        if not isinstance(written, str):
            return written
        try:
            return find(written)
        except InvalidInput as error:
            raise refusal(error) from None

    return BeforeValidator(read)

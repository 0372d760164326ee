"""Turns pydantic's findings into sentences that name the field, the value and the remedy."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from farm.errors import InvalidInput

Model = TypeVar("Model", bound=BaseModel)

_REMEDIES = {
    "missing": "Add it.",
    "extra_forbidden": "Remove it, or check its spelling.",
    "multiple_of": "Use a multiple of {multiple_of}, for example {nearest}.",
    "greater_than_equal": "Use {ge} or more.",
    "less_than_equal": "Use {le} or less.",
    "greater_than": "Use more than {gt:g}.",
    "literal_error": "Use {expected}.",
    "string_too_long": "Use at most {max_length} characters.",
    "string_too_short": "Use at least {min_length} character(s).",
    "too_long": "Use at most {max_length} entries.",
    "too_short": "Use at least {min_length} entries.",
    "int_parsing": "Use a whole number.",
    "int_parsing_size": "Use a number of fewer digits.",
    "int_type": "Use a whole number.",
    "int_from_float": "Use a whole number.",
    "float_parsing": "Use a number.",
    "float_type": "Use a number.",
    "finite_number": "Use a finite number.",
    "string_type": "Use text in quotes.",
    "bool_parsing": "Use true or false.",
    "list_type": "Use a list.",
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "Use an object."),
    "json_invalid": "Send valid JSON.",
    "farm_error": "{remedy}",
}

_LARGE = 4096
"""Nothing larger is proposed, whatever was asked for."""


def refusal(error: InvalidInput) -> PydanticCustomError:
    """Our own error as one that a pydantic validator may raise; :func:`explain` turns it back."""
    told = {"problem": error.message.rstrip("."), "remedy": error.remedy}
    return PydanticCustomError("farm_error", "{problem}", told)


def explain(
    finding: Mapping[str, Any], *, prefix: str = "", names: Mapping[str, str] | None = None
) -> InvalidInput:
    """One pydantic finding (an entry of ``ValidationError.errors()``) as our own error.

    ``prefix`` goes before the field's name; ``names`` replaces names of top-level fields, where
    the client wrote the value somewhere else.
    """
    place = [str(part) for part in finding["loc"] if part not in ("body", "query", "path")]
    message = str(finding["msg"]).removeprefix("Value error, ")
    if not place and ": " in message:
        # A validator over several fields names the one at fault in front of its message.
        head, message = message.split(": ", 1)
        place = [head]
    if place and names:
        place[0] = names.get(place[0], place[0])
    field = ".".join([prefix, *place] if prefix else place) or "body"
    value = finding.get("input")
    return InvalidInput(
        f"{field}: {message}.".replace("..", "."),
        field=field,
        value=value if isinstance(value, str | int | float | bool | None) else None,
        remedy=_remedy(finding, value),
    )


def validated(
    model: type[Model],
    values: Mapping[str, Any],
    *,
    prefix: str = "",
    names: Mapping[str, str] | None = None,
) -> Model:
    """``model`` built from ``values``; raises :class:`InvalidInput` for the first finding."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error.errors(include_url=False)[0], prefix=prefix, names=names) from None


def unparsed(error: ValueError | RecursionError) -> str:
    """Why a text could not be parsed, in few words."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    reason = str(error)
    if "integer string conversion" in reason:  # where Python advises to allow more of them
        return f"a number has more than {sys.get_int_max_str_digits()} digits"
    return reason


def _remedy(finding: Mapping[str, Any], value: Any) -> str | None:
    context = dict(finding.get("ctx") or {})
    if finding["type"] == "multiple_of" and isinstance(value, int | float):
        step = context["multiple_of"]
        context["nearest"] = max(step, round(min(value, _LARGE) / step) * step)
    template = _REMEDIES.get(str(finding["type"]))
    return template.format(**context) if template else None

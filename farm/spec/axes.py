"""Axes of a batch: the fields that vary, and the value syntax people know from XYZ plots.

A value list may be a JSON list, or text in webui's notation: ``1, 2, 5``, ``1-5``,
``1-10 (+3)``, ``10-1 (-3)``, ``1-10 [4]`` (four evenly spaced numbers). Text fields split
on commas as CSV does, quotes protect commas. Ranges include their end when a step meets it
and never overshoot it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from farm.errors import InvalidInput

PROMPT_SR = "prompt_sr"
"""Prompt search and replace: the first value is searched for, each value replaces it."""

INTEGER_FIELDS = frozenset(
    {"width", "height", "steps", "seed", "variation_seed", "eta_noise_seed_delta", "clip_skip"}
    | {"hires_steps", "hires_width", "hires_height"}
)
FLOAT_FIELDS = frozenset(
    {"cfg_scale", "variation_strength", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise"}
    | {"sigma_min", "sigma_max", "rho", "cfg_rescale", "s_min_uncond", "skip_early_cond"}
    | {"guidance_start", "guidance_end"}
    | {"hires_scale", "hires_cfg_scale", "denoising_strength", "extra_noise"}
)
TEXT_FIELDS = frozenset(
    {
        "checkpoint",
        "prompt",
        "negative_prompt",
        "sampler",
        "scheduler",
        "rng",
        "emphasis",
        "hires_upscaler",
        "hires_sampler",
        "hires_checkpoint",
        "hires_prompt",
        "hires_negative_prompt",
        PROMPT_SR,
    }
)
SWITCHES = frozenset(
    {"discard_penultimate", "sgm_noise_multiplier", "zero_terminal_snr", "s_min_uncond_all"}
)
AXIS_FIELDS = INTEGER_FIELDS | FLOAT_FIELDS | TEXT_FIELDS | SWITCHES
LABELS = {
    "var. seed": "variation_seed",
    "var. strength": "variation_strength",
    "prompt s/r": PROMPT_SR,
    "checkpoint name": "checkpoint",
    "negative guidance minimum sigma": "s_min_uncond",
    "sigma churn": "s_churn",
    "sigma min": "s_tmin",
    "sigma max": "s_tmax",
    "sigma noise": "s_noise",
    "schedule type": "scheduler",
    "schedule min sigma": "sigma_min",
    "schedule max sigma": "sigma_max",
    "schedule rho": "rho",
    "denoising": "denoising_strength",
    "always discard next-to-last sigma": "discard_penultimate",
    "rng source": "rng",
}
"""webui's names of axes, but for those that are a field's with spaces in it."""
MAX_VALUES = 10_000
_SWITCH = {"true": True, "false": False}

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(
    rf"\s*({_NUMBER})\s*-\s*({_NUMBER})"
    rf"(?:\s*\(\s*([-+](?:\d+\.?\d*|\.\d+))\s*\)|\s*\[\s*(\d+)\s*\])?\s*"
)


def by_field(axes: Mapping[str, Any]) -> dict[str, Any]:
    """Axes by the fields they vary; webui's names of them, such as ``Hires steps``, go too.

    Raises:
        InvalidInput: two of them vary the same.
    """
    found: dict[str, Any] = {}
    for written, values in axes.items():
        plain = " ".join(written.casefold().split())
        field = LABELS.get(plain, plain.replace(" ", "_"))
        field = field if field in AXIS_FIELDS else written
        if field in found:
            raise InvalidInput(
                f"axes: {written!r} varies {field}, and so does another axis.",
                field="axes",
                value=written,
                remedy="Put all values into one of them.",
            )
        found[field] = values
    return found


def parse_values(field: str, values: Any) -> list[Any]:
    """The values of axis ``field`` as a list of numbers or texts.

    Raises:
        InvalidInput: unknown field, no values, too many, or text that is no number or range.
    """
    where = f"axes.{field}"
    if field not in AXIS_FIELDS:
        raise InvalidInput(
            f"{where}: {field!r} cannot be an axis.",
            field=where,
            value=field,
            remedy=f"Use one of {', '.join(sorted(AXIS_FIELDS))}.",
        )
    if isinstance(values, str):
        parsed = _from_text(field, values)
    elif isinstance(values, Sequence):
        parsed = list(values)
    else:
        parsed = [values]
    if not parsed or len(parsed) > MAX_VALUES:
        count = f"more than {MAX_VALUES}" if parsed else "no"
        raise InvalidInput(
            f"{where}: {count} values.",
            field=where,
            remedy=f"Give between 1 and {MAX_VALUES} values.",
        )
    _check_kinds(field, parsed)
    return parsed


def _check_kinds(field: str, values: list[Any]) -> None:
    kinds: tuple[type, ...] = (int, float)
    kind = "a number"
    if field in TEXT_FIELDS:
        kinds, kind = (str,), "text"
    elif field in SWITCHES:
        kinds, kind = (bool,), "true or false"
    for index, value in enumerate(values):
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            where = f"axes.{field}[{index}]"
            raise InvalidInput(
                f"{where}: {type(value).__name__} is not {kind}.",
                field=where,
                remedy=f"Give {kind}.",
            )


def _from_text(field: str, text: str) -> list[Any]:
    try:
        rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    except csv.Error:
        raise _unreadable(field, text) from None
    parts = [part.strip() for row in rows for part in row]
    if field in TEXT_FIELDS:
        return parts
    if field in SWITCHES:
        return [_SWITCH.get(part.casefold(), part) for part in parts if part]
    numbers = (number for part in parts if part for number in _numbers(field, part))
    # A few characters may stand for thousands; one too many is enough to refuse them.
    return list(islice(numbers, MAX_VALUES + 1))


def _numbers(field: str, part: str) -> list[int] | list[float]:
    convert: Any = int if field in INTEGER_FIELDS else float
    try:
        return [convert(part)]
    except ValueError:
        found = _RANGE.fullmatch(part)
    if not found:
        raise _unreadable(field, part)
    first, last, step, points = found.groups()
    try:
        if points is not None:
            return _evenly_spaced(convert, float(first), float(last), int(points))
        return _stepped(convert, convert(first), convert(last), step)
    except (ValueError, OverflowError):
        raise _unreadable(field, part) from None


def _stepped(convert: Any, first: Any, last: Any, step: str | None) -> list[Any]:
    delta = convert(step) if step else (1 if last >= first else -1)
    if delta == 0 or (last - first) * delta < 0:
        raise ValueError("a step that never reaches the end")
    # The small slack keeps 0.1 + 0.1 + 0.1 inside a range that ends at 0.3.
    count = int((last - first) / delta + 1e-9) + 1
    if count > MAX_VALUES:
        raise ValueError("too many values")
    return [convert(round(first + index * delta, 10)) for index in range(count)]


def _evenly_spaced(convert: Any, first: float, last: float, points: int) -> list[Any]:
    if not 1 <= points <= MAX_VALUES:
        raise ValueError("no points, or too many")
    gap = (last - first) / (points - 1) if points > 1 else 0.0
    return [convert(round(first + index * gap, 10)) for index in range(points)]


def _unreadable(field: str, part: str) -> InvalidInput:
    return InvalidInput(
        f"axes.{field}: {part[:100]!r} is neither a number nor a range.",
        field=f"axes.{field}",
        value=part,
        remedy='Write numbers and ranges such as "1, 5-9, 10-30 (+5), 1-10 [4]".',
    )

"""What must hold in every cell of a batch, checked without expanding the product of its axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from farm.errors import InvalidInput
from farm.spec.axes import PROMPT_SR
from farm.spec.guidance import SPAN
from farm.spec.job import MAX_PIXELS, MAX_PROMPT, JobSpec
from farm.spec.sampling import LEVELS, MAX_SEED

Template: TypeAlias = Mapping[str, Any]
Axes: TypeAlias = Mapping[str, tuple[Any, ...]]


def check_seeds(job: JobSpec, count: int, names: Mapping[str, str]) -> None:
    """The seeds of ``count`` images from this one on exist."""
    for field in ("seed", "variation_seed"):
        seed = getattr(job, field)
        if seed + count - 1 > MAX_SEED:
            where = names.get(field, field)
            raise InvalidInput(
                f"{where}: {field} {seed} plus count {count} passes {MAX_SEED}.",
                field=where,
                value=seed,
                remedy=f"Use a smaller {field}.",
            )


def check_replacement(template: Template, axes: Axes, where: str) -> None:
    """What prompt search and replace searches for is there, and no prompt grows too long."""
    values = axes[PROMPT_SR]
    if not all(isinstance(value, str) and value for value in values):
        raise InvalidInput(
            f"{where}: every value must be text.",
            field=where,
            remedy="Quote it, and leave none empty.",
        )
    search, longest = values[0], max(map(len, values))
    found = False
    for field in ("prompt", "negative_prompt"):
        for text in axes.get(field, (template.get(field, ""),)):
            found = found or search in text
            if len(text) + text.count(search) * (longest - len(search)) > MAX_PROMPT:
                raise InvalidInput(
                    f"{where}: a replaced {field} would be longer than {MAX_PROMPT} characters.",
                    field=where,
                    remedy="Use shorter replacements.",
                )
    if not found:
        raise InvalidInput(
            f"{where}: {search!r} is in no prompt.",
            field=where,
            value=search,
            remedy="The first value is what is searched for; write it as it stands in the prompt.",
        )


def check_pixels(template: Template, axes: Axes) -> None:
    """The largest picture is not too large."""
    width = max(axes.get("width", (template["width"],)))
    height = max(axes.get("height", (template["height"],)))
    if width * height > MAX_PIXELS:
        raise InvalidInput(
            f"axes: the largest cell, {width}x{height}, is more than 16 megapixels.",
            field="axes",
            remedy="Use smaller widths or heights.",
        )


def check_levels(template: Template, axes: Axes) -> None:
    """Lower bounds of noise levels, and of guidance, lie below upper ones."""
    for low, high in (*LEVELS, SPAN):
        lows, highs = (
            axes.get(name, (template.get(name, JobSpec.model_fields[name].default),))
            for name in (low, high)
        )
        if None not in (*lows, *highs) and max(lows) >= min(highs):
            raise InvalidInput(
                f"axes: in some cells {low}, up to {max(lows):g}, is not below {high}, "
                f"from {min(highs):g}.",
                field="axes",
                remedy=f"Keep all of {low} below all of {high}.",
            )

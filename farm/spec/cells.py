"""What must hold in every cell of a batch, checked without expanding the product of its axes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, TypeAlias

from farm.errors import InvalidInput
from farm.spec.axes import PROMPT_SR
from farm.spec.fields import MAX_PIXELS, MAX_PROMPT
from farm.spec.guidance import SPAN
from farm.spec.hires import (
    HIRES_SIZES,
    SECOND_PASS,
    SIZE_FIELDS,
    HiresOptions,
    check_target,
    in_vain,
    is_model,
)
from farm.spec.job import JobSpec, Models
from farm.spec.sampling import LEVELS, MAX_SEED

SHAPE_FIELDS = ("checkpoint", "hires_checkpoint", *SIZE_FIELDS)
DECISIVE = (*SHAPE_FIELDS, "hires_upscaler")
"""Fields that decide which workers can make a job."""

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


def check_named_once(checkpoints: Sequence[str]) -> None:
    """No checkpoint is twice on its axis: it would make the same images again, and each is a
    stretch of the batch that forecasts look at."""
    first: dict[str, int] = {}
    for index, name in enumerate(checkpoints):
        if first.setdefault(name, index) != index:
            where = f"axes.checkpoint[{index}]"
            raise InvalidInput(
                f"{where}: {name!r} is value {first[name]} already.",
                field=where,
                value=name,
                remedy="Name each once; count makes more images of each cell.",
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


def check_sizes(template: Template, axes: Axes) -> None:
    """The largest picture is not too large, nor the smallest too small."""
    for cell in extreme_sizes(template, axes):
        width, height = cell["width"], cell["height"]
        if width * height > MAX_PIXELS:
            raise InvalidInput(
                f"axes: the largest cell, {width}x{height}, is more than 16 megapixels.",
                field="axes",
                remedy="Use smaller widths or heights.",
            )
        try:
            check_target(_hires(cell), width, height)
        except InvalidInput as error:
            raise InvalidInput(
                f"axes: in some cell {error.message}", field="axes", remedy=error.remedy
            ) from None


def has_second_pass(template: Template, axes: Axes) -> bool:
    """Whether any cell has one."""
    return any(
        value not in (0, 1) for field in HIRES_SIZES for value in given(field, template, axes)
    )


def upscalers(template: Template, axes: Axes) -> tuple[str, ...]:
    """The models that second passes of some cells enlarge by."""
    if not has_second_pass(template, axes):
        return ()
    return tuple(filter(is_model, dict.fromkeys(given("hires_upscaler", template, axes))))


def check_second_pass(template: Template, axes: Axes) -> None:
    """What is said of second passes is heeded in some cell."""
    if has_second_pass(template, axes):
        return
    for field in sorted(SECOND_PASS & {*template, *axes}):
        usual = JobSpec.model_fields[field].default
        for value in given(field, template, axes):
            if value != usual:
                raise in_vain(f"axes.{field}" if field in axes else field, value)


def largest(template: Template, axes: Axes, checkpoint: str) -> dict[str, int]:
    """Pixels of the largest picture by checkpoint, in cells of ``checkpoint``: its own, and those
    of the second passes that have another."""
    own = given("hires_checkpoint", template, axes)
    found: dict[str, int] = {}

    def has(name: str, pixels: int) -> None:
        found[name] = max(found.get(name, 0), pixels)

    for cell in extreme_sizes(template, axes):
        width, height = cell["width"], cell["height"]
        has(checkpoint, width * height)
        if target := _hires(cell).enlarged(width, height):
            for name in own:
                has(name or checkpoint, target.width * target.height)
    return found


def models(template: Template, axes: Axes, checkpoint: str) -> frozenset[Models]:
    """What whoever makes one of the cells of ``checkpoint`` must have, in each way there is."""
    own = given("hires_checkpoint", template, axes)
    enlarging = given("hires_upscaler", template, axes)
    found: set[Models] = set()
    for cell in extreme_sizes(template, axes):
        if _hires(cell).enlarged(cell["width"], cell["height"]) is None:
            found.add(Models(frozenset([checkpoint]), frozenset()))
            continue
        for name, upscaler in product(own, enlarging):
            needed = frozenset(filter(is_model, [upscaler]))
            found.add(Models(frozenset([checkpoint, name or checkpoint]), needed))
    return frozenset(found)


def shapes(template: Template, axes: Axes) -> Iterator[list[tuple[str, int, int]]]:
    """Checkpoint, width and height of each pass, the image's last, in each cell as far as that
    depends on fields that decide these; each stands for as many cells as the next. In the order
    of the axes."""
    varied = [field for field, _ in axes.items() if field in SHAPE_FIELDS]
    fixed = {field: given(field, template, axes)[0] for field in SHAPE_FIELDS}
    for values in product(*(axes[field] for field in varied)):
        cell = {**fixed, **dict(zip(varied, values, strict=True))}
        width, height = cell["width"], cell["height"]
        passes = [(cell["checkpoint"], width, height)]
        if target := _hires(cell).enlarged(width, height):
            own = cell["hires_checkpoint"] or cell["checkpoint"]
            passes.append((own, target.width, target.height))
        yield passes


def extreme_sizes(template: Template, axes: Axes) -> Iterator[dict[str, Any]]:
    """What decides the sizes in the corners of the axes.

    Each size rises or falls with each of these fields as long as it is not 0, so that its least,
    its greatest, and its least above 0 are enough.
    """
    choices = []
    for field in SIZE_FIELDS:
        values = given(field, template, axes)
        some = [value for value in values if value]
        choices.append({min(values), max(values), *([min(some)] if some else [])})
    for cell in product(*choices):
        yield dict(zip(SIZE_FIELDS, cell, strict=True))


def given(field: str, template: Template, axes: Axes) -> tuple[Any, ...]:
    """The values of a field in the cells."""
    return axes.get(field, (template.get(field, JobSpec.model_fields[field].default),))


def _hires(cell: Mapping[str, Any]) -> HiresOptions:
    return HiresOptions.model_construct(**{field: cell[field] for field in HIRES_SIZES})


def check_levels(template: Template, axes: Axes) -> None:
    """Lower bounds of noise levels, and of guidance, lie below upper ones."""
    for low, high in (*LEVELS, SPAN):
        lows, highs = (given(name, template, axes) for name in (low, high))
        if None not in (*lows, *highs) and max(lows) >= min(highs):
            raise InvalidInput(
                f"axes: in some cells {low}, up to {max(lows):g}, is not below {high}, "
                f"from {min(highs):g}.",
                field="axes",
                remedy=f"Keep all of {low} below all of {high}.",
            )

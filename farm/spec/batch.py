"""BatchRequest, what a person sends; BatchSpec, what is stored; and ``job(ord)`` between them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from farm.errors import InvalidInput
from farm.spec import cells
from farm.spec.axes import PROMPT_SR, by_field, parse_values
from farm.spec.checkpoints import Defaults, known_checkpoint, own_checkpoint
from farm.spec.fields import MAX_PROMPT
from farm.spec.guidance import GuidanceOptions
from farm.spec.hires import HiresOptions
from farm.spec.job import JobSpec
from farm.spec.output import Output
from farm.spec.problems import validated
from farm.spec.reading import ReadingOptions
from farm.spec.sampling import MAX_SEED, NoiseOptions, SamplingOptions
from farm.spec.tags import MAX_TAGS, Tag

MAX_JOBS = 10_000_000
MAX_COUNT = 100_000
MAX_LISTED = 10_000
PLAIN = {"prompt": "", "negative_prompt": "", "strict": False}
"""Fields that a batch shows even if nobody set them."""

INTERACTIVE_FROM, NORMAL_FROM = 80, 30
"""Lowest priorities of the interactive and of the normal class; below is background."""
INTERACTIVE_EXTRA = 4
"""Interactive jobs that a worker takes beyond what it otherwise holds: they do not wait for a
place."""
PRIORITIES = {"interactive": 90, "normal": 50, "background": 10}


def rank(priority: int) -> int:
    """The class of a priority: 2 interactive, 1 normal, 0 background."""
    return (priority >= INTERACTIVE_FROM) + (priority >= NORMAL_FROM)


def _priority(value: Any) -> Any:
    if isinstance(value, str) and value in PRIORITIES:
        return PRIORITIES[value]
    return value


Priority = Annotated[int, BeforeValidator(_priority), Field(ge=0, le=100)]


class BatchRequest(SamplingOptions, NoiseOptions, ReadingOptions, GuidanceOptions, HiresOptions):
    """A batch as a client writes it.

    Fields left out of a job take the checkpoint's own defaults (its native size and
    guidance). ``seed`` and ``variation_seed`` -1 draw one at random. Every cell of the axes is
    made ``count`` times, with seeds seed, seed+1, ...; ``jobs`` lists explicit jobs instead of
    axes, each overriding the fields above it. Only workers that have all ``tags`` take its jobs.
    ``output`` is the file format of all its images; by default the farm's.
    """

    name: str = Field(default="", max_length=200)
    checkpoint: str | None = Field(default=None, min_length=1, max_length=200)
    prompt: str = Field(default="", max_length=MAX_PROMPT)
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT)
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    sampler: str | None = None
    cfg_scale: float | None = None
    seed: int = Field(default=-1, ge=-1, le=MAX_SEED)
    variation_seed: int = Field(default=-1, ge=-1, le=MAX_SEED)
    strict: bool = False
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    axes: dict[str, Any] = Field(default_factory=dict, max_length=8)
    jobs: list[dict[str, Any]] | None = Field(default=None, min_length=1, max_length=MAX_LISTED)
    output: Output | None = None
    priority: Priority = PRIORITIES["normal"]
    tags: list[Tag] = Field(default_factory=list, max_length=MAX_TAGS)
    wait_for_worker: bool = False


@dataclass(frozen=True)
class BatchSpec:
    """A validated batch: ``total`` jobs, each a pure function of its number.

    Attributes:
        template: the fields all jobs share, complete but for what the axes set.
        axes: (field, values) pairs, slowest first; the checkpoint axis always leads, so
            that a sweep loads each checkpoint once.
        count: images per cell; image i of a cell has seed + i, or with a variation the same seed
            and variation_seed + i.
    """

    template: Mapping[str, Any]
    axes: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    count: int = 1

    @property
    def total(self) -> int:
        return math.prod(len(values) for _, values in self.axes) * self.count

    def coordinates(self, ord: int) -> tuple[int, ...]:
        """Index on each axis of job ``ord``, in the order of ``axes``."""
        cell = ord // self.count
        found = []
        for _, values in reversed(self.axes):
            cell, index = divmod(cell, len(values))
            found.append(index)
        return tuple(reversed(found))

    def job(self, ord: int) -> JobSpec:
        """Job number ``ord``, 0 <= ord < total. Raises IndexError outside."""
        if not 0 <= ord < self.total:
            raise IndexError(f"job {ord} of a batch of {self.total}")
        return JobSpec.model_validate(self._values(self.coordinates(ord), ord % self.count))

    def checkpoint_run(self, ord: int) -> tuple[str, int]:
        """The checkpoint of job ``ord`` and the first later job that needs another."""
        if not self.axes or self.axes[0][0] != "checkpoint":
            return self.template["checkpoint"], self.total
        names = self.axes[0][1]
        run = self.total // len(names)
        index = ord // run
        return names[index], (index + 1) * run

    def checkpoints(self) -> tuple[str, ...]:
        if self.axes and self.axes[0][0] == "checkpoint":
            return tuple(dict.fromkeys(self.axes[0][1]))
        return (self.template["checkpoint"],)

    def _values(self, indices: tuple[int, ...], image: int) -> dict[str, Any]:
        values = dict(self.template)
        replacement: tuple[str, str] | None = None
        for (field, choices), index in zip(self.axes, indices, strict=True):
            if field == PROMPT_SR:
                replacement = (choices[0], choices[index])
            else:
                values[field] = choices[index]
        if replacement:
            for text in ("prompt", "negative_prompt"):
                values[text] = values.get(text, "").replace(*replacement)
        # With a variation only the second seed counts on, as in webui.
        if not values.get("variation_strength"):
            values["seed"] += image
        if "variation_seed" in values:
            values["variation_seed"] += image
        return values

    def stored(self) -> dict[str, Any]:
        """As JSON; a list of pairs, because a JSON object has no order in Postgres."""
        return {
            "template": dict(self.template),
            "axes": [[field, list(values)] for field, values in self.axes],
            "count": self.count,
        }

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> BatchSpec:
        axes = tuple((field, tuple(values)) for field, values in stored["axes"])
        return cls(template=stored["template"], axes=axes, count=stored["count"])


def freeze(request: BatchRequest, defaults: Defaults) -> BatchSpec:
    """The batch as it will run, or :class:`InvalidInput` naming what is wrong.

    Every value of every axis is checked, without expanding their product.
    """
    given = by_field(request.axes)
    axes = [(field, _values(field, each, defaults)) for field, each in given.items()]
    axes.sort(key=lambda axis: axis[0] != "checkpoint")
    template = _template(request, defaults, dict(axes))
    spec = BatchSpec(template=template, axes=tuple(axes), count=request.count)
    if spec.total > MAX_JOBS:
        raise InvalidInput(
            f"axes: {spec.total} jobs in one batch.",
            field="axes",
            value=spec.total,
            remedy=f"Split it into batches of at most {MAX_JOBS} jobs.",
        )
    _check_axes(spec)
    return spec


def _values(field: str, given: Any, defaults: Defaults) -> tuple[Any, ...]:
    values = parse_values(field, given)
    find = {"checkpoint": known_checkpoint, "hires_checkpoint": own_checkpoint}.get(field)
    if find is None:
        return tuple(values)
    found = tuple(
        find(name, defaults, f"axes.{field}[{index}]") for index, name in enumerate(values)
    )
    if field == "checkpoint":
        cells.check_named_once(found)
    return found


def _template(
    request: BatchRequest, defaults: Defaults, axes: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    if "checkpoint" in axes:
        checkpoint = axes["checkpoint"][0]
    else:
        checkpoint = known_checkpoint(request.checkpoint, defaults)
    fields = set(JobSpec.model_fields)
    given = request.model_dump(include=fields, exclude_unset=True)
    if name := given.get("hires_checkpoint"):
        given["hires_checkpoint"] = own_checkpoint(name, defaults, "hires_checkpoint")
    return completed({**given, "checkpoint": checkpoint}, defaults, varied=frozenset(axes))


def completed(
    given: Mapping[str, Any], defaults: Defaults, *, varied: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The fields of a job: those given, the checkpoint's own for what is None or left out, and
    seeds for those that are to be drawn.

    Args:
        given: its ``checkpoint`` is one of ``defaults``.
        varied: fields that axes set.
    """
    said = {field: value for field, value in given.items() if value is not None}
    template = {**PLAIN, **defaults[given["checkpoint"]], **said}
    varies = "variation_strength" in template or "variation_strength" in varied
    for name in ("seed", "variation_seed") if varies else ("seed",):
        if template.get(name, -1) == -1:
            template[name] = random.randrange(2**32)
    if not varies:
        template.pop("variation_seed", None)
    return template


def _check_axes(spec: BatchSpec) -> None:
    base = spec._values((0,) * len(spec.axes), 0)
    names = {field: f"axes.{field}[0]" for field, _ in spec.axes}
    cells.check_seeds(validated(JobSpec, base, names=names), spec.count, names)
    for field, values in spec.axes:
        for index, value in enumerate(values):
            where = f"axes.{field}[{index}]"
            if field == PROMPT_SR:
                cells.check_replacement(spec.template, dict(spec.axes), where)
            else:
                here = {**names, field: where}
                job = validated(JobSpec, {**base, field: value}, names=here)
                cells.check_seeds(job, spec.count, here)
    cells.check_sizes(spec.template, dict(spec.axes))
    cells.check_levels(spec.template, dict(spec.axes))
    cells.check_second_pass(spec.template, dict(spec.axes))

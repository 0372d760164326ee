"""Which jobs of a batch no worker could ever make, said before anything of it is stored."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product, starmap
from math import prod
from typing import TypeAlias

from farm.db.database import Database
from farm.dispatch.means import Glance, Means, Shape, look, names
from farm.dispatch.parts import MAX_SHAPES
from farm.errors import FarmError
from farm.spec.batch import BatchSpec
from farm.spec.cells import SHAPE_FIELDS, given, models, shapes, upscalers
from farm.spec.hires import HIRES_SIZES
from farm.spec.job import JobSpec

_SIDES = ("checkpoint", "width", "height")

_NOBODY = "This farm has no worker yet: the batch waits for the first."

Jobs: TypeAlias = BatchSpec | Sequence[JobSpec]


@dataclass(frozen=True)
class Prospects:
    """Whether all jobs of a batch can ever be made.

    Attributes:
        refusal: why not, naming field, value and remedy; None where they can, or nobody knows.
        notice: what they will have to wait for, or None.
    """

    refusal: FarmError | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Beyond:
    """The jobs of a batch that no worker could make.

    Attributes:
        first: number of the first one.
        shape: its own.
    """

    first: int
    jobs: int
    shape: Shape


def prospects(
    db: Database, batch: Jobs, tags: Sequence[str], *, glance: Glance | None = None
) -> Prospects:
    """What workers, live ones and those that are away, could make of a batch with these tags.

    Nobody is refused by a farm that has not seen any worker yet.

    Args:
        glance: tells sooner that all is well.
    """
    if glance and _all_well(glance.means(tags), batch):
        return Prospects()
    means = look(db, tags, away=False)
    if means.known and _all_well(means, batch):
        return Prospects()
    means = look(db, tags, away=True)
    if not means.known:
        return Prospects(notice=_NOBODY)
    if lacking := _lacking(means, batch):
        return Prospects(lacking)
    found = beyond(means, batch)
    if found is None:
        return Prospects(notice=_away(means))
    return Prospects(refusal(means, found, batch))


class Gate:
    """Judges jobs that come one by one.

    Args:
        waits: nobody is refused.

    Attributes:
        notice: what jobs that were let in will have to wait for.
    """

    def __init__(self, db: Database, tags: Sequence[str], *, waits: bool) -> None:
        self.notice: str | None = None
        self._waits = waits
        self._live = look(db, tags, away=False)
        self._seen = look(db, tags, away=True)

    def admit(self, job: JobSpec, where: str) -> None:
        """Let a job in, or raise what ``where`` it stands is wrong with it: no worker could make
        it, live or away."""
        missing = _without(self._live, job, where)
        if missing is None and _worst(self._live, _shapes(job)) is None:
            return
        if not self._seen.known:
            self.notice = _NOBODY
        elif error := _without(self._seen, job, where):
            self._refuse(error)
        elif (shape := _worst(self._seen, _shapes(job))) is None:
            self.notice = self.notice or _away(self._seen)
        else:
            at = partial(_at_fault, job, shape)
            self._refuse(self._seen.obstacle(shape, lambda field: f"{where}.{at(field)}"))

    def _refuse(self, error: FarmError) -> None:
        if not self._waits:
            raise error
        self.notice = self.notice or error.message


def _all_well(means: Means, batch: Jobs) -> bool:
    return _lacking(means, batch) is None and beyond(means, batch) is None


def _lacking(means: Means, batch: Jobs) -> FarmError | None:
    """What to answer where no worker has the models that enlarge the batch's pictures."""
    if not isinstance(batch, BatchSpec):
        found = (_without(means, job, f"jobs[{ord}]") for ord, job in enumerate(batch))
        return next((error for error in found if error), None)
    axes = dict(batch.axes)
    asked = axes.get("hires_upscaler")

    def where(name: str) -> str:
        return f"axes.hires_upscaler[{asked.index(name)}]" if asked else "hires_upscaler"

    asking = upscalers(batch.template, axes)
    checkpoints = given("checkpoint", batch.template, axes) if asking else ()
    needed = (one for name in checkpoints for one in models(batch.template, axes, name))
    return means.without(asking, needed, where)


def _without(means: Means, job: JobSpec, where: str) -> FarmError | None:
    if job.target is None:  # As most are, of a million lines.
        return None
    return means.without(job.upscalers, [job.models], lambda _: f"{where}.hires_upscaler")


def beyond(means: Means, batch: Jobs) -> Beyond | None:
    """The jobs that no worker could make, if any; counted without expanding the axes."""
    if not isinstance(batch, BatchSpec):
        return _listed(means, batch)
    axes = dict(batch.axes)
    if any(field in batch.template or field in axes for field in HIRES_SIZES):
        return _enlarged(means, batch)
    checkpoints, widths, heights = (
        axes[side] if side in axes else (batch.template[side],) for side in _SIDES
    )
    ascending = sorted(heights)
    cells = sum(
        len(heights) - bisect_right(ascending, means.most(checkpoint) / width)
        for checkpoint in checkpoints
        for width in widths
    )
    if not cells:
        return None
    each = batch.total // (len(checkpoints) * len(widths) * len(heights))
    first, shape = _first(means, batch)
    return Beyond(first, cells * each, shape)


def refusal(means: Means, found: Beyond, batch: Jobs) -> FarmError:
    """What to answer who submits a batch of which jobs are beyond all workers."""
    if isinstance(batch, BatchSpec):
        fields = [field for field, _ in batch.axes]
        index = dict(zip(fields, batch.coordinates(found.first), strict=True))
        total = batch.total
    else:
        index, total = {}, len(batch)
    job = batch.job(found.first) if isinstance(batch, BatchSpec) else batch[found.first]

    def where(said: str) -> str:
        field = _at_fault(job, found.shape, said)
        if not isinstance(batch, BatchSpec):
            return f"jobs[{found.first}].{field}"
        return f"axes.{field}[{index[field]}]" if field in index else field

    which = f"{found.jobs} of its {total} jobs" if found.jobs < total else f"all {total} jobs"
    concerned = f"This concerns {which}, the first is number {found.first}."
    return means.obstacle(found.shape, where, concerned if total > 1 else "")


def _at_fault(job: JobSpec, shape: Shape, field: str) -> str:
    """What says ``field`` of a shape: of the second pass's, where it is that."""
    if shape == (job.checkpoint, job.width, job.height):
        return field
    if field == "checkpoint":
        return "hires_checkpoint" if job.hires_checkpoint else field
    return next((side for side in HIRES_SIZES[1:] if getattr(job, side)), HIRES_SIZES[0])


def _away(means: Means) -> str:
    away = names([card for card in means.known if card.away])
    return f"Some jobs wait for workers that are away now: {away}."


def _first(means: Means, batch: BatchSpec) -> tuple[int, Shape]:
    """Number and shape of the first job that is beyond all workers; there is one."""
    axes = [(field, values) for field, values in batch.axes if field in _SIDES]
    for indices in product(*(range(len(values)) for _, values in axes)):
        chosen = {field: index for (field, _), index in zip(axes, indices, strict=True)}
        said = {**batch.template, **{field: values[chosen[field]] for field, values in axes}}
        shape = Shape(said["checkpoint"], said["width"], said["height"])
        if shape.pixels > means.most(shape.checkpoint):
            return _number(batch, chosen), shape
    raise LookupError("no job is beyond all workers")


def _number(batch: BatchSpec, chosen: Mapping[str, int]) -> int:
    """The first job with these indices on some of the axes."""
    cell = 0
    for field, values in batch.axes:
        cell = cell * len(values) + chosen.get(field, 0)
    return cell * batch.count


def _listed(means: Means, batch: Sequence[JobSpec]) -> Beyond | None:
    worst = ((ord, _worst(means, _shapes(job))) for ord, job in enumerate(batch))
    bad = [(ord, shape) for ord, shape in worst if shape]
    return Beyond(bad[0][0], len(bad), bad[0][1]) if bad else None


def _enlarged(means: Means, batch: BatchSpec) -> Beyond | None:
    """The same of a batch with a second pass, as far as one can count."""
    axes = dict(batch.axes)
    varied = [(field, len(values)) for field, values in batch.axes if field in SHAPE_FIELDS]
    known = islice(shapes(batch.template, axes), MAX_SHAPES)
    worst = ((place, _worst(means, starmap(Shape, each))) for place, each in enumerate(known))
    bad = [(place, shape) for place, shape in worst if shape]
    if not bad:
        return None
    (place, shape), chosen = bad[0], {}
    for field, count in reversed(varied):
        place, chosen[field] = divmod(place, count)
    each = batch.total // prod(count for _, count in varied)
    return Beyond(_number(batch, chosen), len(bad) * each, shape)


def _shapes(job: JobSpec) -> list[Shape]:
    """Of each pass, its image's last."""
    if job.target is None:  # As most are, of a million lines.
        return [Shape(job.checkpoint, job.width, job.height)]
    passes = [Shape(each.checkpoint, each.width, each.height) for each in job.passes]
    return [*passes, Shape(job.passes[-1].checkpoint, *job.size)]


def _worst(means: Means, shapes: Iterable[Shape]) -> Shape | None:
    """The first of these that no worker could make."""
    return next((one for one in shapes if one.pixels > means.most(one.checkpoint)), None)

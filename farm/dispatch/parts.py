"""What a batch consists of: jobs by checkpoint and size, counted without being expanded."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod

from farm.db import batches, jobs
from farm.db.database import Database
from farm.db.spans import Span
from farm.dispatch.cost import units, upscaled
from farm.errors import Unavailable
from farm.spec.batch import BatchSpec
from farm.spec.cells import SHAPE_FIELDS, models, shapes
from farm.spec.job import JobSpec, Models

_log = logging.getLogger(__name__)

SAMPLED, FEW = 64, 9
"""Jobs of a checkpoint whose size is looked at; the others are taken for like them. Fewer where
many batches are looked at."""
MAX_SHAPES = 10_000


@dataclass(frozen=True)
class Part:
    """Jobs of a batch on one checkpoint, from ``first`` to before ``end``.

    Attributes:
        size: units of work of one of them, on average.
        pixels: of one of their images, on average.
        models: that one worker must have to make one of them, in each way there is.
        upscales: what models that enlarge pictures do for one of them, on average, see
            :func:`farm.dispatch.cost.upscaled`.
    """

    checkpoint: str
    first: int
    end: int
    size: float
    pixels: float
    models: frozenset[Models]
    upscales: Mapping[str, float] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        return self.end - self.first

    @property
    def checkpoints(self) -> frozenset[str]:
        """All that some of them need."""
        return frozenset(name for each in self.models for name in each.checkpoints)

    def among(self, spans: Iterable[Span]) -> int:
        """How many of them are in these spans."""
        return sum(max(0, min(self.end, end) - max(self.first, first)) for first, end in spans)


def parts_of(batch: BatchSpec | Sequence[JobSpec], *, sampled: int = SAMPLED) -> list[Part]:
    """A batch by checkpoint, in order; a few jobs stand for the others."""
    if not isinstance(batch, BatchSpec):
        return _stretches(list(enumerate(batch)), len(batch))
    parts, first = [], 0
    while first < batch.total:
        _, end = batch.checkpoint_run(first)
        ords = sample(first, end, sampled)
        looked = [batch.job(ord) for ord in ords]
        size, pixels, number = sum(map(units, looked)), sum(map(_pixels, looked)), len(looked)
        name = looked[0].checkpoint
        needed, shown = models(batch.template, dict(batch.axes), name), _upscales(looked)
        parts.append(Part(name, first, end, size / number, pixels / number, needed, shown))
        first = end
    return parts


def stored_parts(db: Database, totals: Mapping[int, int]) -> dict[int, list[Part]]:
    """The same of batches that were accepted, a little more roughly; given with their totals.

    Nothing of one that cannot be read: who asks about the others must not suffer.
    """
    found: dict[int, list[Part]] = {}
    for batch_id, total in totals.items():
        try:
            found[batch_id] = _stored(db, batch_id, total)
        except Unavailable:
            raise
        except Exception:
            _log.exception("nothing can be foreseen of batch %d", batch_id)
            found[batch_id] = []
    return found


def _stored(db: Database, batch_id: int, total: int) -> list[Part]:
    spec = batches.specification(db, batch_id)
    if spec is not None:
        return parts_of(spec, sampled=FEW)
    return _stretches(jobs.listed(db, batch_id, sample(0, total, FEW)), total)


def sample(first: int, end: int, sampled: int) -> range:
    """Numbers of jobs to look at: every so many, and no round number, so that no axis is looked
    at in one place only."""
    return range(first, end, max(1, (end - first) // sampled) | 1)


def shapes_of(batch: BatchSpec | Sequence[JobSpec]) -> Counter[tuple[str, int, int]]:
    """How many jobs there are of each width and height, and of each checkpoint, of the second pass
    where there is one; exact."""
    if not isinstance(batch, BatchSpec):
        return Counter((job.passes[-1].checkpoint, *job.size) for job in batch)
    axes = dict(batch.axes)
    cells = prod(len(axes[field]) for field in SHAPE_FIELDS if field in axes)
    found: Counter[tuple[str, int, int]] = Counter()
    for shape in islice(shapes(batch.template, axes), MAX_SHAPES):
        found[shape[-1]] += batch.total // cells
    return found


def _stretches(looked: Sequence[tuple[int, JobSpec]], total: int) -> list[Part]:
    """Each job that was looked at stands for those up to the next one that was."""
    ends = [ord for ord, _ in looked[1:]] + [total]
    parts: list[Part] = []
    for (ord, job), end in zip(looked, ends, strict=True):
        needed, shown = frozenset([job.models]), upscaled(job)
        parts.append(Part(job.checkpoint, ord, end, units(job), _pixels(job), needed, shown))
    return parts


def _upscales(looked: Sequence[JobSpec]) -> Mapping[str, float]:
    shown: defaultdict[str, float] = defaultdict(float)
    for job in looked:
        for name, size in upscaled(job).items():
            shown[name] += size / len(looked)
    return shown


def _pixels(job: JobSpec) -> int:
    width, height = job.size
    return width * height

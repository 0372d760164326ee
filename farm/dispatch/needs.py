"""What waiting jobs need: which checkpoint, how many alike follow, how much work each is."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

from farm.db import batches, jobs
from farm.db.database import Database
from farm.dispatch.cost import units, upscaled
from farm.dispatch.queues import Kind
from farm.spec import networks
from farm.spec.batch import BatchSpec
from farm.spec.cells import DECISIVE, largest, upscalers
from farm.spec.job import JobSpec

_READ, _SPECS = 8192, 8
"""Answers that are kept: jobs to retry come one by one, and are asked about in each cycle. And
specifications, each of which may have 32 MB."""
_STRETCHES = 16
"""Of a batch, those that are known: of each of its heads, and of some to retry."""


@dataclass(frozen=True)
class Need:
    """What a job needs, and the next ones up to ``until``.

    Attributes:
        kind: what the first runs well together with.
        size: units of work of the first, see :func:`farm.dispatch.cost.units`.
        largest: pixels of the largest image by checkpoint, among those that the batch has by its
            axes, or among the listed ones up to ``until``; its own, and those of second passes that
            have another.
        upscalers: models that some of the batch's second passes need.
        upscales: what of these the first takes, see :func:`farm.dispatch.cost.upscaled`.
        mixed: some of them need less than others.
    """

    kind: Kind
    size: float
    largest: Mapping[str, int]
    until: int
    upscalers: frozenset[str] = frozenset()
    upscales: Mapping[str, float] = field(default_factory=dict)
    mixed: bool = False

    @property
    def checkpoint(self) -> str:
        return self.kind.checkpoint


class Needs:
    """Answers from the batches' specifications, which never change."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._specs = lru_cache(maxsize=_SPECS)(partial(batches.specification, db))
        self._known: defaultdict[tuple[int, bool], deque[tuple[int, Need]]] = defaultdict(
            partial(deque, maxlen=_STRETCHES)
        )
        self._read = lru_cache(maxsize=_READ)(self._find)

    def of(self, batch_id: int, ord: int, *, alike: bool = False) -> Need:
        """What a job of a batch needs; of those that follow on the same checkpoint, the size of
        the first one that was asked for.

        Args:
            alike: only of those that follow and need no more and no less.
        """
        known = self._known[batch_id, alike]
        for first, need in known:
            if first <= ord < need.until:
                return need
        need = self._read(batch_id, ord, alike)
        known.appendleft((ord, need))
        return need

    def forget(self, batch_id: int) -> None:
        """The batch has ended."""
        for alike in (False, True):
            self._known.pop((batch_id, alike), None)

    def _find(self, batch_id: int, ord: int, alike: bool) -> Need:
        spec = self._specs(batch_id)
        if spec is None:
            return self._listed(batch_id, ord, alike=alike)
        job, run = spec.job(ord), _run_of_equals(spec)
        if alike:
            return _need([job], until=(ord // run + 1) * run)
        _, until = spec.checkpoint_run(ord)
        axes = dict(spec.axes)
        most = largest(spec.template, axes, job.checkpoint)
        models = frozenset(upscalers(spec.template, axes))
        mixed = run < until - ord or most != job.largest or len(models) > len(job.upscalers)
        return Need(_kind(job), units(job), most, until, models, upscaled(job), mixed)

    def _listed(self, batch_id: int, ord: int, *, alike: bool) -> Need:
        sizes, until = jobs.checkpoint_run(self._db, batch_id, ord)
        if alike:
            _, *others = sizes
            return _need([sizes[ord]], until=min(others, default=until))
        return _need(list(sizes.values()), until=until)


def _need(found: Sequence[JobSpec], *, until: int) -> Need:
    """Of jobs that are told from others by their sizes."""
    first, pixels = found[0], Counter[str]()
    for each in found:
        pixels |= Counter(each.largest)
    models = frozenset(name for each in found for name in each.upscalers)
    mixed = len(found) > 1
    return Need(_kind(first), units(first), dict(pixels), until, models, upscaled(first), mixed)


def _run_of_equals(spec: BatchSpec) -> int:
    """How many jobs that follow each other need the same of a worker."""
    run = found = spec.total
    for name, values in spec.axes:
        run //= len(values)
        if name in DECISIVE:
            found = run
    return found


def _kind(job: JobSpec) -> Kind:
    loras = tuple((lora.name, lora.strength) for lora in networks.parse(job.prompt).unet)
    return Kind(job.checkpoint, loras, (job.width, job.height))

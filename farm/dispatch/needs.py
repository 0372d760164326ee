"""What waiting jobs need: which checkpoint, how many alike follow, how much work each is."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

from farm.db import batches, jobs
from farm.db.database import Database
from farm.dispatch.cost import units, upscaled
from farm.dispatch.snapshot import Kind
from farm.spec import networks
from farm.spec.cells import largest, upscalers
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
    """

    kind: Kind
    size: float
    largest: Mapping[str, int]
    until: int
    upscalers: frozenset[str] = frozenset()
    upscales: Mapping[str, float] = field(default_factory=dict)

    @property
    def checkpoint(self) -> str:
        return self.kind.checkpoint


class Needs:
    """Answers from the batches' specifications, which never change."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._specs = lru_cache(maxsize=_SPECS)(partial(batches.specification, db))
        self._known: defaultdict[int, deque[tuple[int, Need]]] = defaultdict(
            partial(deque, maxlen=_STRETCHES)
        )
        self._read = lru_cache(maxsize=_READ)(self._find)

    def of(self, batch_id: int, ord: int) -> Need:
        """What a job of a batch needs; of those that follow on the same checkpoint, the size of
        the first one that was asked for."""
        known = self._known[batch_id]
        for first, need in known:
            if first <= ord < need.until:
                return need
        need = self._read(batch_id, ord)
        known.appendleft((ord, need))
        return need

    def forget(self, batch_id: int) -> None:
        """The batch has ended."""
        self._known.pop(batch_id, None)

    def _find(self, batch_id: int, ord: int) -> Need:
        spec = self._specs(batch_id)
        if spec is None:
            sizes, until = jobs.checkpoint_run(self._db, batch_id, ord)
            job, pixels = sizes[0], Counter[str]()
            for each in sizes:
                pixels |= Counter(each.largest)
            models = frozenset(name for each in sizes for name in each.upscalers)
            return Need(_kind(job), units(job), dict(pixels), until, models, upscaled(job))
        _, until = spec.checkpoint_run(ord)
        job = spec.job(ord)
        axes = dict(spec.axes)
        most = largest(spec.template, axes, job.checkpoint)
        models = frozenset(upscalers(spec.template, axes))
        return Need(_kind(job), units(job), most, until, models, upscaled(job))


def _kind(job: JobSpec) -> Kind:
    loras = tuple((lora.name, lora.strength) for lora in networks.parse(job.prompt).unet)
    return Kind(job.checkpoint, loras, (job.width, job.height))

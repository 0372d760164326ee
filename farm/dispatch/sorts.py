"""The sorts of jobs in a batch: those of one sort need the same of a worker, which is what decides
where they can be made. There are as many as the axes, or the lines, ask for different things."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from math import prod
from typing import NamedTuple

from farm.db import batches, inputs
from farm.db.database import Database
from farm.dispatch.queues import Run
from farm.spec.batch import BatchSpec
from farm.spec.cells import DECISIVE
from farm.spec.job import JobSpec

PAGE = 1000
"""Sorts that are looked at in one go: few batches have as many."""
_PAGES, _SPECS = 64, 8
"""Answers that are kept."""


class Sort(NamedTuple):
    """A sort of jobs in a batch: its number there, and any one of them."""

    number: int
    any: Run


class Sorts:
    """Which sorts batches have, and where their jobs are. That never changes."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._specs = lru_cache(maxsize=_SPECS)(partial(batches.specification, db))
        self.page = lru_cache(maxsize=_PAGES)(self._page)
        """The next sorts of a batch after one by its number, None for the first; in order."""

    def following(self, batch_id: int, number: int, ord: int) -> int | None:
        """The first job of a sort from number ``ord`` on, which the batch must have."""
        spec = self._specs(batch_id)
        if spec is None:
            return inputs.following(self._db, batch_id, number, ord)
        return following(spec, _indices(spec, number), ord)

    def _page(self, batch_id: int, after: int | None) -> Sequence[Sort]:
        spec = self._specs(batch_id)
        if spec is None:
            listed = inputs.sorts(self._db, batch_id, after=after, limit=PAGE)
            return [Sort(number, _any(batch_id, job)) for number, job in listed]
        first = 0 if after is None else after + 1
        found = []
        for number in range(first, min(first + PAGE, prod(_decisive(spec).values()))):
            ord = following(spec, _indices(spec, number), 0)
            assert ord is not None
            found.append(Sort(number, _any(batch_id, spec.job(ord))))
        return found


def following(spec: BatchSpec, indices: Mapping[int, int], ord: int) -> int | None:
    """The first job from number ``ord`` on that has these indices on some axes, by the axes'
    places."""
    sizes = [*(len(values) for _, values in spec.axes), spec.count]
    digits = [*spec.coordinates(ord), ord % spec.count]
    place = next((at for at, index in sorted(indices.items()) if digits[at] != index), None)
    if place is None:
        return ord
    if indices[place] > digits[place]:
        digits[place] = indices[place]
    else:  # one that varies more slowly goes on, if it can
        free = (at for at in reversed(range(place)) if at not in indices)
        place = next((at for at in free if digits[at] + 1 < sizes[at]), None)
        if place is None:
            return None
        digits[place] += 1
    digits[place + 1 :] = [indices.get(at, 0) for at in range(place + 1, len(sizes))]
    found = 0
    for digit, size in zip(digits, sizes, strict=True):
        found = found * size + digit
    return found


def _decisive(spec: BatchSpec) -> dict[int, int]:
    """The axes that decide the sort of a job: their places, and how many values each has."""
    return {at: len(values) for at, (name, values) in enumerate(spec.axes) if name in DECISIVE}


def _indices(spec: BatchSpec, number: int) -> dict[int, int]:
    found = {}
    for at, size in _decisive(spec).items():
        number, found[at] = divmod(number, size)
    return found


def _any(batch_id: int, job: JobSpec) -> Run:
    return Run(
        batch_id,
        job.checkpoint,
        0,
        1,
        largest=job.largest,
        upscalers=frozenset(job.upscalers),
    )

"""What is further on in open batches than their heads, for sessions that none of the heads suits.

A batch is asked for each session like that which sorts of jobs it has that the session could make,
and where the first of them are that nobody has claimed. Nothing that was claimed comes back, so a
sort of which nothing is left need not be looked for again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from farm.db.backlog import OpenBatch
from farm.db.spans import Span, count
from farm.dispatch.queues import Run
from farm.dispatch.snapshot import Seat
from farm.dispatch.sorts import PAGE, Sort, Sorts
from farm.errors import Unavailable

_log = logging.getLogger(__name__)

EACH = 8
"""Runs of a batch that are found for a session."""
MOST = 128
"""Runs that are found for it in all."""
LOOKS = 256
"""Batches that are asked in one cycle."""
_FORGET = 60.0
"""Seconds after which all is looked for anew."""

Make: TypeAlias = Callable[[OpenBatch, Span, bool], Run | None]
Signature: TypeAlias = tuple[Hashable, ...]
"""What decides which jobs a session can make."""


class Idle(NamedTuple):
    """A session with a free place, for all that can make the same jobs."""

    signature: Signature
    seat: Seat


class Further:
    """Looks for jobs further on, and remembers where there are none.

    Args:
        make: see :class:`farm.dispatch.heads.Heads`.
    """

    def __init__(self, sorts: Sorts, make: Make) -> None:
        self._sorts = sorts
        self._make = make
        self._left = LOOKS
        self._begun = time.monotonic()
        self._after: dict[tuple[int, Signature], int | None] = {}
        """Of a batch and a session, the sort up to which it has nothing for it."""
        self._none: set[tuple[int, Signature]] = set()
        self._from: dict[tuple[int, int], int] = {}
        """Of a batch and a sort, the first job that somebody may not have claimed."""

    def begin(self) -> None:
        """Another cycle."""
        self._left = LOOKS
        if time.monotonic() - self._begun > _FORGET:
            self._begun = time.monotonic()
            self._after, self._none, self._from = {}, set(), {}

    def of(self, batch: OpenBatch, heads: Sequence[Run], idle: Idle) -> list[Run] | None:
        """The first runs of a batch that a session could make, where none of its heads suits it;
        None if there may be some, and more cycles are needed to know."""
        seat, key = idle.seat, (batch.id, idle.signature)
        if key in self._none or not frozenset(batch.tags) <= seat.tags:
            return []
        if _is_all(batch, heads) and not any(_has(seat, run.checkpoint) for run in heads):
            return []
        if not self._left:
            return None
        self._left -= 1
        try:
            return self._look(batch, idle)
        except Unavailable:
            raise
        except Exception:
            _log.exception("batch %s cannot be read further on", batch.id)
            self._none.add(key)
            return []

    def _look(self, batch: OpenBatch, idle: Idle) -> list[Run] | None:
        key = batch.id, idle.signature
        page = self._sorts.page(batch.id, self._after.get(key))
        able = [sort for sort in page if idle.seat.suits(sort.any)]
        found = _first(EACH, (self._runs(batch, sort) for sort in able))
        if not found and len(page) == PAGE:
            self._after[key] = page[-1].number
            return None
        if not found:
            self._none.add(key)
        return found

    def _runs(self, batch: OpenBatch, sort: Sort) -> Iterator[Run]:
        """The runs of a sort that nobody has claimed."""
        at, known = self._from.get((batch.id, sort.number), 0), False
        for first, end in batch.spans:
            while max(first, at) < end:
                ord = self._sorts.following(batch.id, sort.number, max(first, at))
                at = batch.spans[-1][1] if ord is None else ord
                if at >= end:
                    break
                if not known:
                    self._from[batch.id, sort.number], known = at, True
                run = self._make(batch, (at, end), False)
                if run is None:
                    return
                yield run
                at += run.count
        if not known:
            self._from[batch.id, sort.number] = batch.spans[-1][1]


def idle(seats: Iterable[Seat], runs: Sequence[Run], full: Collection[int]) -> list[Idle]:
    """Of sessions with a free place those that none of some runs suits.

    Args:
        full: users who may have nothing more in flight.
    """
    kinds = {_signature(seat): seat for seat in seats}
    return [
        Idle(signature, seat)
        for signature, seat in kinds.items()
        if not any(seat.suits(run) and run.user not in full for run in runs)
    ]


def merged(
    heads: Sequence[Run], found: Iterable[Run], make: Callable[[Span], Run | None]
) -> list[Run]:
    """The heads of a batch and what was found further on, in order, no job in two of them: what is
    left of a head around others is made anew."""
    wanted = _apart(found)
    runs = list(wanted)
    for head in heads:
        first, end = head.first, head.first + head.count
        for other in [*wanted, None]:
            stop = min(end, other.first) if other else end
            if first < stop:
                runs += _rest(head, (first, stop), make)
            if other:
                first = max(first, min(end, other.first + other.count))
    return sorted(runs, key=lambda run: run.first)


def _rest(head: Run, span: Span, make: Callable[[Span], Run | None]) -> Iterator[Run]:
    first, end = span
    if first == head.first:
        yield replace(head, count=end - first)
        return
    while first < end and (run := make((first, end))) is not None:
        yield run
        first += run.count


def _apart(found: Iterable[Run]) -> list[Run]:
    """In order, each up to where the next one begins."""
    runs = sorted({run.first: run for run in found}.values(), key=lambda run: run.first)
    nexts = [run.first for run in runs[1:]]
    cut = [
        replace(run, count=min(run.count, end - run.first))
        for run, end in zip(runs, nexts, strict=False)
    ]
    return [*cut, *runs[-1:]]


def _first(most: int, sorts: Iterable[Iterator[Run]]) -> list[Run]:
    """Of as many sorts as there is room for the first run each, and then what follows."""
    begun: list[Iterator[Run]] = []
    found: list[Run] = []
    for runs in sorts:
        if len(found) == most:
            break
        if run := next(runs, None):
            found.append(run)
            begun.append(runs)
    for runs in begun:
        while len(found) < most and (run := next(runs, None)):
            found.append(run)
    return found


def _signature(seat: Seat) -> Signature:
    return seat.tags, seat.can_load, seat.upscalers, frozenset(seat.fits.items())


def _is_all(batch: OpenBatch, heads: Sequence[Run]) -> bool:
    """Whether the heads of a batch are all that is left of it."""
    return sum(run.count for run in heads) == count(batch.spans)


def _has(seat: Seat, checkpoint: str) -> bool:
    return seat.can_load is None or checkpoint in seat.can_load

"""Which job goes to which session: a pure function of a snapshot.

First come, first served within a priority, with one exception: a free session prefers a job
whose checkpoint it already holds among the next few, unless the job at the head has been
passed over for too long.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from farm.db.leases import Claim

LOOKAHEAD = 32
"""How many batches a free session looks through for one whose checkpoint it holds."""

PATIENCE = 30.0
"""Seconds that a batch may be passed over for warmer ones."""


@dataclass(frozen=True)
class Run:
    """Jobs of one batch that need the same checkpoint: the next ``count``, or one retry.

    Attributes:
        waited: seconds since a job of the batch was last placed.
        ord: the job to retry; None for jobs at the batch's cursor.
        avoid: the worker that failed it last.
        alone: it is suspected of killing workers, and gets a session to itself.
    """

    batch_id: int
    checkpoint: str
    priority: int
    count: int
    waited: float = 0.0
    ord: int | None = None
    avoid: str | None = None
    alone: bool = False


@dataclass(frozen=True)
class Seat:
    """A live session: how many jobs it may hold, how many it holds, which checkpoints."""

    session_id: str
    worker: str
    capacity: int
    held: int
    warm: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Snapshot:
    """``runs`` in the order of their claim to be served."""

    seats: Sequence[Seat]
    runs: Sequence[Run]


@dataclass
class _Place:
    """A seat while it is being filled."""

    seat: Seat
    held: int
    warm: set[str]

    @property
    def load(self) -> float:
        return self.held / self.seat.capacity


@dataclass
class _Queue:
    """The runs with what is left of each."""

    runs: list[Run]
    left: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.left = [run.count for run in self.runs]

    def take(self, index: int) -> Run:
        run = self.runs[index]
        self.left[index] -= 1
        if not self.left[index]:
            del self.runs[index], self.left[index]
        return run


def place(snapshot: Snapshot) -> list[Claim]:
    """Fill the free places of the least loaded sessions, one job at a time."""
    places = [_Place(seat, seat.held, set(seat.warm)) for seat in snapshot.seats]
    workers = {seat.worker for seat in snapshot.seats}
    queue = _Queue(list(snapshot.runs))
    heap = [
        (place.load, number)
        for number, place in enumerate(places)
        if place.held < place.seat.capacity
    ]
    heapq.heapify(heap)
    taken: list[tuple[Run, str]] = []
    while heap and queue.runs:
        _, number = heapq.heappop(heap)
        chosen = places[number]
        index = _pick(queue.runs, chosen, workers)
        if index is None:
            continue
        run = queue.take(index)
        taken.append((run, chosen.seat.session_id))
        chosen.held = chosen.seat.capacity if run.alone else chosen.held + 1
        chosen.warm.add(run.checkpoint)
        if chosen.held < chosen.seat.capacity:
            heapq.heappush(heap, (chosen.load, number))
    return _claims(taken)


def _pick(runs: Sequence[Run], place: _Place, workers: set[str]) -> int | None:
    first: int | None = None
    for index, run in enumerate(runs):
        if first is not None and (
            index - first >= LOOKAHEAD
            or run.priority < runs[first].priority
            or runs[first].waited > PATIENCE
        ):
            break
        if not _may_take(run, place, workers):
            continue
        if run.checkpoint in place.warm:
            return index
        if first is None:
            first = index
    return first


def _may_take(run: Run, place: _Place, workers: set[str]) -> bool:
    if run.alone and place.held:
        return False
    # Another worker gets a failed job, as long as there is another.
    return run.avoid != place.seat.worker or workers == {run.avoid}


def _claims(taken: Sequence[tuple[Run, str]]) -> list[Claim]:
    """One claim for each run of jobs that goes to the same session, in order."""
    counts: dict[tuple[int, str], int] = {}
    ords: dict[tuple[int, str], list[int]] = {}
    for run, session_id in taken:
        key = (run.batch_id, session_id)
        if run.ord is None:
            counts[key] = counts.get(key, 0) + 1
        else:
            ords.setdefault(key, []).append(run.ord)
    retried = [Claim(batch, session, ords=tuple(found)) for (batch, session), found in ords.items()]
    fresh = [Claim(batch, session, count=count) for (batch, session), count in counts.items()]
    return retried + fresh

"""Other rules to place jobs by, as others have them, on the same snapshots as ours.

They are written from descriptions of what those programs do; what is not about the order of jobs,
such as how many a worker holds, is the same for all.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from itertools import count

from farm.dispatch.placement import Placed, place
from farm.dispatch.places import Place, claims
from farm.dispatch.queues import Run
from farm.dispatch.simulator.trace import Trace
from farm.dispatch.snapshot import Snapshot

LOOKAHEAD = 32
"""Jobs of a user that InvokeAI looks through for one whose model is warm."""
COUNT = 10.0
"""Seconds of waiting that a request more is worth in SwarmUI's pressure."""

Policy = Callable[[Snapshot, float], Placed]
"""What to place, given who is free, what waits, and the time."""


class _Left:
    """How many jobs of each run are not placed yet, in the order of submission."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.runs = sorted(snapshot.runs, key=lambda run: run.batch_id)
        self.count = {run.head: run.count for run in self.runs}

    def take(self, run: Run) -> None:
        self.count[run.head] -= 1
        if not self.count[run.head]:
            self.runs.remove(run)


def ours(snapshot: Snapshot, _: float) -> Placed:
    """What the dispatcher does."""
    return place(snapshot)


def fifo(snapshot: Snapshot, _: float) -> Placed:
    """First come, first served, whatever is warm and whoever asks."""
    left = _Left(snapshot)

    def pick(place: Place) -> Run | None:
        return next((run for run in left.runs if place.seat.suits(run)), None)

    return _filled(snapshot, left, pick)


class WarmFirst:
    """InvokeAI: the user who was served longest ago; of that user's jobs of the highest priority
    the first among 32 whose model is warm, or else the first."""

    def __init__(self) -> None:
        self._served: dict[int, int] = {}
        self._turns = count(1)

    def __call__(self, snapshot: Snapshot, _: float) -> Placed:
        left = _Left(snapshot)
        by_user: dict[int, list[Run]] = {}
        for run in snapshot.runs:
            by_user.setdefault(run.user, []).append(run)

        def pick(place: Place) -> Run | None:
            for user in sorted(by_user, key=lambda user: self._served.get(user, 0)):
                runs = [run for run in by_user[user] if left.count[run.head]]
                if found := _warm_of(runs, left, place):
                    self._served[user] = next(self._turns)
                    return found
            return None

        return _filled(snapshot, left, pick)


class Pressure:
    """SwarmUI: requests first go to backends that have their model; a backend without such work
    loads the model of the highest pressure, 10 for each request and 1 for each second that the
    first one has waited."""

    def __init__(self, trace: Trace) -> None:
        self._came = [batch.at for batch in trace.batches]

    def __call__(self, snapshot: Snapshot, now: float) -> Placed:
        left = _Left(snapshot)

        def pick(place: Place) -> Run | None:
            able = [run for run in left.runs if place.seat.suits(run)]
            warm = next((run for run in able if run.checkpoint in place.warm), None)
            if warm or not able:
                return warm
            pressure: dict[str, float] = {}
            for run in able:
                first = now - self._came[run.batch_id - 1]
                before = pressure.get(run.checkpoint, first)
                pressure[run.checkpoint] = before + COUNT * left.count[run.head]
            name = max(pressure, key=lambda one: pressure[one])
            return next(run for run in able if run.checkpoint == name)

        return _filled(snapshot, left, pick)


def policies(trace: Trace) -> dict[str, Policy]:
    """Every policy by name, new for each run."""
    return {
        "fifo": fifo,
        "warm-first": WarmFirst(),
        "pressure": Pressure(trace),
        "farm": ours,
    }


def _warm_of(runs: list[Run], left: _Left, place: Place) -> Run | None:
    """The warm one among the first jobs, or the first."""
    able: Run | None = None
    looked = 0
    for run in runs:
        if looked >= LOOKAHEAD or (able and run.priority < able.priority):
            break
        looked += left.count[run.head]
        if place.seat.suits(run):
            if run.checkpoint in place.warm:
                return run
            able = able or run
    return able


def _filled(snapshot: Snapshot, left: _Left, pick: Callable[[Place], Run | None]) -> Placed:
    """Fill the places, the emptiest first."""
    taken = list(_taken([Place(*one) for one in enumerate(snapshot.seats)], left, pick))
    return Placed(claims(taken), frozenset())


def _taken(
    places: list[Place], left: _Left, pick: Callable[[Place], Run | None]
) -> Iterator[tuple[Run, str]]:
    heap = [(place.load, place.number) for place in places if place.has_room(0)]
    heapq.heapify(heap)
    while heap and left.runs:
        _, number = heapq.heappop(heap)
        place = places[number]
        run = pick(place)
        if run is None:
            continue
        left.take(run)
        place.take(run, run.cost / place.seat.speed)
        yield run, place.seat.session_id
        if place.has_room(0):
            heapq.heappush(heap, (place.load, number))

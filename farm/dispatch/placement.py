"""Which job goes to which session: a pure function of a snapshot.

A free place goes to a job that its card can make,

1. of the highest class that has one: interactive, normal, background;
2. of the user who has had least in GPU-seconds (see :mod:`farm.dispatch.fairness`);
3. of that user's most important batch, then the oldest.

Two exceptions save loads. A session goes on with what it holds (the same checkpoint, LoRAs and size
first, then the same checkpoint and LoRAs, then the same checkpoint) while the user of that is
within ``slack`` of the fairest. And a checkpoint that others hold is loaded once more only if it
lacks cards (see :mod:`farm.dispatch.demand` and :mod:`farm.dispatch.supply`), by a card with time
to spare, or by an idle one where none of them may take the job; where a user's first batch is not
worth a load here, one of their later ones may be. Both end when the job whose turn it is has been
passed over for ``patience`` seconds: it gets the next place. So a warm checkpoint costs others a
bounded share and a bounded time.

The interactive class is a privilege of people, not of scripts: who is ``BURST`` ahead of others is
served in the normal class until they are level.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import NamedTuple

from farm.db.leases import Claim
from farm.dispatch.demand import LITTLE_WORTH
from farm.dispatch.places import Place, claims
from farm.dispatch.queues import INTERACTIVE, Head, Key, Run
from farm.dispatch.snapshot import Snapshot
from farm.dispatch.supply import Supply
from farm.dispatch.waiting import Waiting, closest
from farm.spec.batch import INTERACTIVE_EXTRA

PATIENCE = 30.0
"""Seconds that a job may be passed over for warmer ones, for each checkpoint that waits a card."""

SLACK = 60.0
"""GPU-seconds by which a user may be ahead of the fairest for the sake of a warm checkpoint, or
what they are entitled to in ``SLACK_TIME`` if that is more."""
SLACK_TIME = 30.0


@dataclass(frozen=True)
class Placed:
    """What to lease, and the runs that were passed over for warmer ones, by their heads."""

    claims: list[Claim]
    passed: frozenset[Head]


def place(snapshot: Snapshot) -> Placed:
    """Fill the free places of the least loaded sessions, one job at a time.

    Interactive jobs come first, and find a few places more than there are for others.
    """
    if not snapshot.seats:
        return Placed([], frozenset())
    farm = _Farm(snapshot)
    farm.fill(lowest=INTERACTIVE, extra=INTERACTIVE_EXTRA)
    farm.fill(lowest=0, extra=0)
    return Placed(claims(farm.taken), frozenset(farm.passed))


class _Found(NamedTuple):
    """A job that a place could take, and what its user has had."""

    time: float
    run: Run


class _Farm:
    """The places, and what waits for them."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.taken: list[tuple[Run, str]] = []
        self.passed: set[Head] = set()
        self._waiting = Waiting(snapshot)
        usual = self._waiting.usual
        self._places = [Place(*numbered, usual) for numbered in enumerate(snapshot.seats)]
        self._workers = {seat.worker for seat in snapshot.seats}
        self._holders = Counter(name for seat in snapshot.seats for name in seat.warm)
        crowd = len(self._waiting.loads) / max(1, len(self._places))
        self._patience = PATIENCE * max(1.0, crowd)

    def fill(self, *, lowest: int, extra: int) -> None:
        """Give jobs of a class or above places, ``extra`` ones beyond capacity included."""
        heap = [(place.load, place.number) for place in self._places if place.has_room(extra)]
        heapq.heapify(heap)
        while heap:
            _, number = heapq.heappop(heap)
            place = self._places[number]
            if self._serve(place, lowest) and place.has_room(extra):
                heapq.heappush(heap, (place.load, number))

    def _serve(self, place: Place, lowest: int) -> bool:
        """Give a place a job of a class or above, if it had better take one."""
        for level in self._waiting.levels:
            if level >= lowest and (run := self._pick(level, place)) is not None:
                self._take(place, run, level)
                return True
        return False

    def _take(self, place: Place, run: Run, level: int) -> None:
        if run.checkpoint not in place.warm:
            self._holders[run.checkpoint] += 1
            self._supply.load(place.number, run.checkpoint)
        seconds = run.cost / place.seat.speed
        self._waiting.take(run, level, seconds)
        self.taken.append((run, place.seat.session_id))
        place.take(run, seconds)

    def _pick(self, level: int, place: Place) -> Run | None:
        """Whose job of a class a place gets; None if it had better take none of them."""
        turn = self._first(level, place)
        if turn is None or turn.run.passed > self._patience:
            return turn and turn.run
        slack = max(SLACK, SLACK_TIME * self._waiting.pace[level])
        warm = self._warm(level, place, turn.time + slack)
        if warm is None or warm.time > turn.time + slack:
            bound = inf if warm is None else warm.time
            warm = self._cold(level, place, bound) or warm
        if warm is None and not self._in_hands(turn.run):
            return turn.run
        if warm is None or (warm.run is not turn.run and warm.time >= turn.time):
            self.passed.add(turn.run.head)
        return warm and warm.run

    def _first(self, level: int, place: Place) -> _Found | None:
        """Whose turn it is."""
        for time, runs in self._waiting.users(level):
            if (found := self._own(place, runs)) is not None:
                return _Found(time, found)
        return None

    def _own(self, place: Place, runs: Sequence[Run]) -> Run | None:
        """The first of a user's runs that a place may take."""
        gone = self._waiting.gone
        return next(
            (run for run in runs if run.head not in gone and self._may_take(run, place)), None
        )

    def _warm(self, level: int, place: Place, limit: float) -> _Found | None:
        """The fairest job of a checkpoint that a place holds; what is more like the last one goes
        before what is less, up to a limit of its user's time."""
        if place.last is not None and place.last.checkpoint in place.warm:
            for key in closest(place.last):
                if (found := self._alike(level, place, key)) and found.time <= limit:
                    return found
        warm = [self._alike(level, place, (name,)) for name in place.warm]
        return min((one for one in warm if one), key=lambda one: one.time, default=None)

    def _alike(self, level: int, place: Place, key: Key) -> _Found | None:
        """The fairest job of a kind whose user does not want another one first."""
        for time, runs in self._waiting.users(level, key):
            found = self._own(place, runs)
            if found is not None and self._welcome(level, place, found):
                return _Found(time, found)
        return None

    def _welcome(self, level: int, place: Place, run: Run) -> bool:
        """Whether none of its user's more important batches could have the place."""
        own = self._own(place, self._waiting.of(level, run.user))
        return (
            own is not None
            and own.priority == run.priority
            and (own is run or own.passed <= self._patience)
        )

    def _cold(self, level: int, place: Place, bound: float) -> _Found | None:
        """The job of the fairest user below a bound whose checkpoint is worth loading here, which
        need not be of their first batch; the oldest where users are level."""
        busy = bound < inf
        waiting = self._waiting.checkpoints[level]
        names = {name for name in waiting if self._worth(level, name, place, busy=busy)}
        best: _Found | None = None
        for time, runs in self._waiting.users(level) if names else ():
            if time >= bound or (best and time > best.time):
                break
            for one in self._welcome_among(level, place, runs, names):
                names.discard(one.checkpoint)
                if best is None or one.batch_id < best.run.batch_id:
                    best = _Found(time, one)
        return best

    def _welcome_among(
        self, level: int, place: Place, runs: Sequence[Run], names: Collection[str]
    ) -> Iterator[Run]:
        """The runs of a user on some checkpoints that a place may take."""
        for run in runs:
            if (
                run.checkpoint in names
                and run.head not in self._waiting.gone
                and self._may_take(run, place)
                and self._welcome(level, place, run)
            ):
                yield run

    def _worth(self, level: int, name: str, place: Place, *, busy: bool) -> bool:
        holders, load = self._holders[name], self._waiting.loads[name]
        if not holders or not load:
            return True
        if level == INTERACTIVE:
            # Its holders put it first, so all that counts is what they would put first; and
            # somebody sits and waits, so a load that saves them a little will do.
            return self._waiting.urgent[name] > holders * LITTLE_WORTH * load
        if busy and not self._supply.idles(place.number):
            return False
        return self._supply.lacks(name)

    def _in_hands(self, run: Run) -> bool:
        """Whether a card that may take it holds its checkpoint."""
        return any(
            run.checkpoint in place.warm and self._may_take(run, place) for place in self._places
        )

    @cached_property
    def _supply(self) -> Supply:
        return Supply(self._waiting.wanted, [list(place.warm) for place in self._places])

    def _may_take(self, run: Run, place: Place) -> bool:
        if run.alone and place.held:
            return False
        if not place.seat.suits(run):
            return False
        # Another worker gets a failed job, as long as there is another.
        return run.avoid != place.seat.worker or self._workers == {run.avoid}

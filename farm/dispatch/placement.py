"""Which job goes to which session: a pure function of a snapshot.

A free place goes to a job

1. of the highest class that has one: interactive, normal, background;
2. of the user who has had least in GPU-seconds (see :mod:`farm.dispatch.fairness`);
3. of that user's most important batch, then the oldest.

One exception saves loads: among users who are within ``SLACK`` of the fairest, and among the next
few batches, a job whose checkpoint the session holds goes first, unless the one that would have
been served has been passed over for too long. So a warm checkpoint costs others a bounded share
and a bounded time.

The interactive class is a privilege of people, not of scripts: who is ``BURST`` ahead of others is
served in the normal class until they are level.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from farm.db.leases import Claim
from farm.spec.batch import INTERACTIVE_EXTRA, rank

INTERACTIVE, NORMAL = 2, 1

LOOKAHEAD = 32
"""How many batches a free session looks through for one whose checkpoint it holds."""

PATIENCE = 30.0
"""Seconds that a batch may be passed over for warmer ones."""

SLACK = 60.0
"""GPU-seconds by which a user may be ahead of the fairest for the sake of a warm checkpoint."""

BURST = 600.0
"""GPU-seconds ahead of the fairest at which a user's interactive jobs count as normal ones."""


@dataclass(frozen=True)
class Run:
    """Jobs of one batch that need the same checkpoint: the next ``count``, or one retry.

    Attributes:
        waited: seconds since a job of the batch was last placed.
        ord: the job to retry; None for jobs at the batch's cursor.
        avoid: the worker that failed it last.
        alone: it is suspected of killing workers, and gets a session to itself.
        user: whose it is.
        cost: GPU-seconds that one of its jobs is expected to take.
        size: its units of work, see :func:`farm.dispatch.cost.units`.
    """

    batch_id: int
    checkpoint: str
    priority: int
    count: int
    waited: float = 0.0
    ord: int | None = None
    avoid: str | None = None
    alone: bool = False
    user: int = 0
    cost: float = 1.0
    size: float = 1.0


@dataclass(frozen=True)
class Seat:
    """A live session: how many jobs it may hold, how many it holds, which checkpoints.

    Attributes:
        warm: checkpoints in its memory, or on their way there.
        can_load: those that its host has; None if that is not known.
    """

    session_id: str
    worker: str
    capacity: int
    held: int
    warm: frozenset[str] = frozenset()
    can_load: frozenset[str] | None = None


@dataclass(frozen=True)
class Claimant:
    """What a user is entitled to.

    Attributes:
        time: what they have had, in GPU-seconds over their weight.
        weight: their part of the farm, relative to others.
        room: how many more jobs of theirs may be in flight; None for any number.
    """

    time: float = 0.0
    weight: float = 1.0
    room: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """``runs`` in the order that each user wants them served; users unknown are all level."""

    seats: Sequence[Seat]
    runs: Sequence[Run]
    users: Mapping[int, Claimant] = field(default_factory=dict)


def place(snapshot: Snapshot) -> list[Claim]:
    """Fill the free places of the least loaded sessions, one job at a time.

    Interactive jobs come first, and find a few places more than there are for others.
    """
    places = [_Place(seat, seat.held, set(seat.warm)) for seat in snapshot.seats]
    queue = _Queue(snapshot)
    taken = _fill(places, queue, lowest=INTERACTIVE, extra=INTERACTIVE_EXTRA)
    return _claims(taken + _fill(places, queue, lowest=0, extra=0))


def _fill(
    places: Sequence[_Place], queue: _Queue, *, lowest: int, extra: int
) -> list[tuple[Run, str]]:
    """Give jobs of a class or above places, ``extra`` ones beyond capacity included."""
    workers = {place.seat.worker for place in places}
    heap = [
        (place.load, number)
        for number, place in enumerate(places)
        if place.held < place.seat.capacity + extra
    ]
    heapq.heapify(heap)
    taken: list[tuple[Run, str]] = []
    while heap and queue.holds(lowest):
        _, number = heapq.heappop(heap)
        chosen = places[number]
        run = _pick(queue.classes(lowest), chosen, workers)
        if run is None:
            continue
        queue.take(run)
        taken.append((run, chosen.seat.session_id))
        chosen.held = chosen.seat.capacity + extra if run.alone else chosen.held + 1
        chosen.warm.add(run.checkpoint)
        if chosen.held < chosen.seat.capacity + extra:
            heapq.heappush(heap, (chosen.load, number))
    return taken


@dataclass
class _Place:
    """A seat while it is being filled."""

    seat: Seat
    held: int
    warm: set[str]

    @property
    def load(self) -> float:
        return self.held / self.seat.capacity


class _Queue:
    """The runs by class and user, and what is left of each."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._users = snapshot.users
        self.times = {run.user: self._claimant(run.user).time for run in snapshot.runs}
        self._rooms = {user: self._claimant(user).room for user in self.times}
        fairest = min(self.times.values(), default=0.0)
        self._left: Counter[Run] = Counter()
        self._runs: dict[tuple[int, int], list[Run]] = {}
        for run in snapshot.runs:
            self._left[run] = run.count
            ahead = self.times[run.user] - fairest
            self._runs.setdefault((_class(run.priority, ahead), run.user), []).append(run)
        # Of each class, its users by what they have had.
        self._order: dict[int, list[tuple[float, int]]] = {}
        for level, user in self._runs:
            if self._rooms[user] != 0:
                insort(self._order.setdefault(level, []), (self.times[user], user))

    def holds(self, lowest: int) -> bool:
        """Whether anything is left of that class or a higher one."""
        return any(order for level, order in self._order.items() if level >= lowest)

    def classes(self, lowest: int) -> Iterator[list[tuple[float, list[Run]]]]:
        """Class by class, the highest first: (time, runs) of its users, the fairest first."""
        for level in sorted(self._order, reverse=True):
            if level >= lowest:
                yield [(time, self._runs[level, user]) for time, user in self._order[level]]

    def take(self, run: Run) -> None:
        """One job of the run has a place, and its user has had as much more."""
        user = run.user
        before = self.times[user]
        self.times[user] += run.cost / self._claimant(user).weight
        self._left[run] -= 1
        if (room := self._rooms[user]) is not None:
            self._rooms[user] = room - 1
        for level, order in self._order.items():
            runs = self._runs.get((level, user))
            if runs is None or (before, user) not in order:
                continue
            order.remove((before, user))
            if not self._left[run] and run in runs:
                runs.remove(run)
            if runs and self._rooms[user] != 0:
                insort(order, (self.times[user], user))

    def _claimant(self, user: int) -> Claimant:
        return self._users.get(user, _ANYBODY)


_ANYBODY = Claimant()


def _class(priority: int, ahead: float) -> int:
    return min(rank(priority), INTERACTIVE if ahead < BURST else NORMAL)


def _pick(
    classes: Iterator[list[tuple[float, list[Run]]]], place: _Place, workers: set[str]
) -> Run | None:
    for users in classes:
        if (run := _pick_in_class(users, place, workers)) is not None:
            return run
    return None


def _pick_in_class(
    users: Sequence[tuple[float, Sequence[Run]]], place: _Place, workers: set[str]
) -> Run | None:
    """The warm job among the next few, or else the one whose turn it is."""
    turn: Run | None = None
    fairest, looked = 0.0, 0
    for time, runs in users:
        if turn and (time - fairest > SLACK or looked >= LOOKAHEAD or turn.waited > PATIENCE):
            break
        own: Run | None = None
        for run in runs:
            if looked >= LOOKAHEAD and turn:
                break
            if own and (run.priority < own.priority or (turn is own and own.waited > PATIENCE)):
                break
            if not _may_take(run, place, workers):
                continue
            looked += 1
            if run.checkpoint in place.warm:
                return run
            own = own or run
            if turn is None:
                turn, fairest = run, time
    return turn


def _may_take(run: Run, place: _Place, workers: set[str]) -> bool:
    if run.alone and place.held:
        return False
    if place.seat.can_load is not None and run.checkpoint not in place.seat.can_load:
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

"""The places of sessions while they are being filled, and what comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from farm.db.leases import Claim
from farm.dispatch.queues import Head, Run
from farm.dispatch.snapshot import Seat

AHEAD = 20.0
"""Seconds of work that are enough for a session; beyond them it is sent no more than half of what
it may hold. What is sent can go nowhere else, and the last jobs should end on the fastest cards."""


class Place:
    """A seat while it is being filled.

    Args:
        usual: seconds that a job takes on a card of speed 1, more or less.
    """

    __slots__ = ("ahead", "closed", "held", "last", "number", "seat", "usual", "warm")

    def __init__(self, number: int, seat: Seat, usual: float = 0.0) -> None:
        self.number = number
        self.usual = usual / seat.speed
        self.seat = seat
        self.held = seat.held
        self.ahead = seat.ahead
        self.warm = dict.fromkeys(sorted(seat.warm))
        self.last = seat.last
        self.closed = False

    @property
    def load(self) -> tuple[float, float]:
        """When a job would be done here: the places that are soonest come first."""
        return self.ahead + self.usual, self.held / self.seat.capacity

    def has_room(self, extra: int) -> bool:
        capacity = self.seat.capacity
        if self.closed or self.held >= capacity + extra:
            return False
        return bool(extra) or self.ahead < AHEAD or self.held < capacity / 2

    def take(self, run: Run, seconds: float) -> None:
        self.held += 1
        self.ahead += seconds
        self.warm[run.checkpoint] = None
        self.last = run.kind
        self.closed = run.alone


def claims(taken: Sequence[tuple[Run, str]]) -> list[Claim]:
    """One claim for the jobs of each run that go to the same session, and for those of a batch that
    are to be tried again there; in order."""
    counts: dict[tuple[Head, str], int] = {}
    ords: dict[tuple[int, str], list[int]] = {}
    for run, session_id in taken:
        if run.retry:
            ords.setdefault((run.batch_id, session_id), []).append(run.first)
        else:
            counts[run.head, session_id] = counts.get((run.head, session_id), 0) + 1
    claims = [Claim(batch, session, ords=tuple(found)) for (batch, session), found in ords.items()]
    begun: Counter[Head] = Counter()
    for (head, session), count in counts.items():
        batch, first = head
        claims.append(Claim(batch, session, count=count, first=first + begun[head]))
        begun[head] += count
    return claims

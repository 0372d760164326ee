"""Fair share between users: who has had least, by weight, is served next.

Stride scheduling (Waldspurger and Weihl 1995) over GPU-seconds: each user has a virtual time,
which advances by what their jobs cost over their weight. A job is charged with what it is
expected to cost when it is placed, and corrected when it has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import median_low


class Shares:
    """The virtual times of all users. Known only to the leader; a new one starts all level."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._active: set[int] = set()
        self._waiting: set[int] = set()
        self._floor = 0.0

    def level(self, active: Collection[int], waiting: Collection[int]) -> Mapping[int, float]:
        """The virtual times of the users who have work waiting or in flight.

        Who comes back to work gets no credit for the time without any, and who had the farm to
        themselves has no debt: one starts in the middle of those who have to wait, and who are all
        about level. In the middle, because some are not: who wants little never waits for long,
        and who wants what few cards have gets ahead or falls behind.

        Args:
            waiting: those of them who could have more in flight, were there places.
        """
        if queued := [self._times[user] for user in waiting if user in self._waiting]:
            self._floor = median_low(queued)
        elif not self._active:
            self._floor = max(self._times.values(), default=0.0)
        for user in active:
            if user not in self._active:
                self._times[user] = max(self._times.get(user, 0.0), self._floor)
        self._active = set(active)
        self._waiting = set(waiting) or self._waiting & self._active
        return {user: self._times[user] for user in active}

    def charge(self, user: int, seconds: float, weight: float) -> None:
        """Add GPU-seconds to what a user has had; negative ones give back."""
        self._times[user] = self._times.get(user, 0.0) + seconds / weight


def jain(values: Sequence[float]) -> float:
    """Jain's index (Jain, Chiu and Hawe 1984): 1 if all are equal, 1/n if one has everything."""
    squares = len(values) * sum(value**2 for value in values)
    return sum(values) ** 2 / squares if squares else 1.0

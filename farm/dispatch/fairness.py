"""Fair share between users: who has had least, by weight, is served next.

Stride scheduling (Waldspurger and Weihl 1995) over GPU-seconds: each user has a virtual time,
which advances by what their jobs cost over their weight. A job is charged with what it is
expected to cost when it is placed, and corrected when it has ended.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


class Shares:
    """The virtual times of all users. Known only to the leader; a new one starts all level."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._active: set[int] = set()
        self._waiting: set[int] = set()

    def level(self, active: Collection[int], waiting: Collection[int]) -> Mapping[int, float]:
        """The virtual times of the users who have work waiting or in flight.

        Who comes back to work gets no credit for the time without any, and who had the farm to
        themselves has no debt: one starts where the one stands who has had least of those who
        have to wait. Who never waits, because they want little, is no measure.

        Args:
            waiting: those of them who could have more in flight, were there places.
        """
        queued = [self._times[user] for user in waiting if user in self._waiting]
        floor = min(queued, default=max(self._times.values(), default=0.0))
        for user in active:
            if user not in self._active:
                self._times[user] = max(self._times.get(user, floor), floor)
        self._active, self._waiting = set(active), set(waiting)
        return {user: self._times[user] for user in active}

    def charge(self, user: int, seconds: float, weight: float) -> None:
        """Add GPU-seconds to what a user has had; negative ones give back."""
        self._times[user] = self._times.get(user, 0.0) + seconds / weight

"""The queues of users, kept from one snapshot to the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import attrgetter

from farm.dispatch.snapshot import Queue, Run

_TURN = attrgetter("turn")


class Queues:
    """Makes a queue anew only where a run in it has changed."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Sequence[Run], Queue]] = {}

    def of(self, runs: Iterable[Run]) -> list[Queue]:
        """The queue of each user who has some of these runs, as each wants them served."""
        by_user: defaultdict[int, list[Run]] = defaultdict(list)
        for run in runs:
            by_user[run.user].append(run)
        before, self._made = self._made, {}
        for user, own in by_user.items():
            made = before.get(user)
            if made is None or made[0] != own:
                made = own, Queue(user, sorted(own, key=_TURN))
            self._made[user] = made
        return [queue for _, queue in self._made.values()]

"""What waits while places are filled, in the orders that placement asks for: by class, by user, by
what it needs."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from math import inf
from statistics import median_low

from farm.dispatch.demand import wanted
from farm.dispatch.queues import INTERACTIVE, Head, Key, Kind, Queue, Run
from farm.dispatch.snapshot import Claimant, Snapshot

BURST = 600.0
"""GPU-seconds ahead of those who take turns at which a user's interactive jobs count as normal."""

_ANYBODY = Claimant()


class Line:
    """Users with jobs of one kind, the one who has had least first.

    A user's time only grows while places are filled, so a place in the line that is out of date
    is too far ahead, and is put right when it is looked at.
    """

    def __init__(self, runs: dict[int, Sequence[Run]], times: Mapping[int, float]) -> None:
        self.runs = runs
        self.order = sorted((times[user], user) for user in runs)


class Waiting:
    """The queues of a snapshot while places are filled. Of thousands of runs few are looked at, so
    a line is drawn up when it is asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._queues = snapshot.queues
        self._cards = len(snapshot.seats)
        self._claimants = {q.user: snapshot.users.get(q.user, _ANYBODY) for q in self._queues}
        self.times = {user: one.time for user, one in self._claimants.items()}
        self._rooms = {user: one.room for user, one in self._claimants.items()}
        self._left: dict[Head, int] = {}
        self.gone = set[Head]()
        """Runs of which nothing is left to place."""
        self._lines: dict[tuple[int, Key], Line] = {}
        self._classes = self._by_class()
        self.levels = sorted(self._classes, reverse=True)
        self.urgent = dict[str, float]()
        """GPU-seconds that wait in the interactive class, by checkpoint."""
        for queue in self._classes.get(INTERACTIVE, {}).values():
            for name, seconds in queue.work.items():
                self.urgent[name] = self.urgent.get(name, 0.0) + seconds

    @cached_property
    def usual(self) -> float:
        """Seconds that a waiting job takes on average."""
        work = sum(sum(queue.work.values()) for queue in self._queues)
        return work / max(1, sum(queue.jobs for queue in self._queues))

    @cached_property
    def loads(self) -> Mapping[str, float]:
        """Seconds that each checkpoint takes to load that is waited for."""
        return {name: load for queue in self._queues for name, load in queue.loads.items()}

    @cached_property
    def wanted(self) -> Mapping[str, float]:
        """Cards that should serve each checkpoint, if each user had their share right now."""
        classes = {level: self._classes[level] for level in self.levels}
        return wanted(self._claimants, classes, self._cards)

    @cached_property
    def pace(self) -> Mapping[int, float]:
        """Of each class, GPU-seconds that a user of weight 1 is entitled to in a second."""
        return {
            level: self._cards / sum(self._claimants[user].weight for user in queues)
            for level, queues in self._classes.items()
        }

    @cached_property
    def checkpoints(self) -> Mapping[int, Sequence[str]]:
        """Of each class, those that are waited for, or were."""
        return {
            level: list(dict.fromkeys(name for queue in queues.values() for name in queue.work))
            for level, queues in self._classes.items()
        }

    def users(self, level: int, key: Key = ()) -> Iterator[tuple[float, Sequence[Run]]]:
        """(time, runs) of the users of a class who have jobs of a kind, the fairest first.

        Args:
            key: nothing, (checkpoint,), (checkpoint, loras) or a whole kind.
        """
        line = self._line(level, key)
        place = 0
        while place < len(line.order):
            time, user = line.order[place]
            runs = line.runs[user]
            if runs[0].head in self.gone:
                runs = line.runs[user] = [run for run in runs if run.head not in self.gone]
            if not runs or self._rooms[user] == 0:
                del line.order[place]
            elif self.times[user] != time:
                del line.order[place]
                insort(line.order, (self.times[user], user))
            else:
                yield time, runs
                place += 1

    def of(self, level: int, user: int) -> Sequence[Run]:
        """The runs of a user in a class, in their order."""
        return self._line(level, ()).runs[user]

    def take(self, run: Run, level: int, seconds: float) -> None:
        """A job of the run, in that class, has a place where it takes so many GPU-seconds."""
        user = run.user
        left = self._left[run.head] = self._left.get(run.head, run.count) - 1
        if not left:
            self.gone.add(run.head)
        self.times[user] += seconds / self._claimants[user].weight
        if level == INTERACTIVE:
            self.urgent[run.checkpoint] -= run.cost
        if (room := self._rooms[user]) is not None:
            self._rooms[user] = room - 1

    def _by_class(self) -> Mapping[int, Mapping[int, Queue]]:
        turns = [self.times[user] for user in contenders(self._queues)]
        level_with = median_low(turns) if turns else inf
        found: dict[int, dict[int, Queue]] = {}
        for queue in self._queues:
            ahead = self.times[queue.user] - level_with >= BURST
            for level, part in (queue.calmed if ahead else queue.classes).items():
                found.setdefault(level, {})[queue.user] = part
        return found

    def _line(self, level: int, key: Key) -> Line:
        line = self._lines.get((level, key))
        if line is None:
            parts = self._classes[level].items()
            runs = {user: alike for user, part in parts if (alike := part.alike(key))}
            line = self._lines[level, key] = Line(runs, self.times)
        return line


def closest(kind: Kind) -> tuple[Key, ...]:
    """What jobs like those of a kind are asked for by: exactly like them, or but for their size."""
    return tuple(kind), kind[:2]


def contenders(queues: Iterable[Queue]) -> set[int]:
    """Who takes turns: the users of the highest class that has to wait. Interactive work does not,
    and lower classes have no turn."""
    turns: dict[int, set[int]] = {}
    for queue in queues:
        level = next((level for level in queue.classes if level != INTERACTIVE), None)
        if level is not None:
            turns.setdefault(level, set()).add(queue.user)
    return turns[max(turns)] if turns else set()

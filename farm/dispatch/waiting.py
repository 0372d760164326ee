"""What waits, in the orders that placement asks for: by class, by user, by what it needs."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence

from farm.dispatch.snapshot import Claimant, Kind, Run, Snapshot
from farm.spec.batch import rank

INTERACTIVE, NORMAL = 2, 1

BURST = 600.0
"""GPU-seconds ahead of the fairest at which a user's interactive jobs count as normal ones."""

SOON = 30.0
"""Seconds over which work is worth being shared among cards."""

_ANYBODY = Claimant()


class Open:
    """A run of which ``left`` jobs are not placed yet."""

    __slots__ = ("left", "level", "run")

    def __init__(self, run: Run, level: int) -> None:
        self.run = run
        self.level = level
        self.left = run.count


class Line:
    """Users with jobs of one kind, the one who has had least first.

    A user's time only grows while places are filled, so a place in the line that is out of date
    is too far ahead, and is put right when it is looked at.
    """

    def __init__(self) -> None:
        self.runs: dict[int, list[Open]] = {}
        self.order: list[tuple[float, int]] = []

    def add(self, open_run: Open, time: float) -> None:
        user = open_run.run.user
        if user not in self.runs:
            self.runs[user] = []
            insort(self.order, (time, user))
        self.runs[user].append(open_run)


class Waiting:
    """The runs of a snapshot while places are filled."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._users = snapshot.users
        self.times = {run.user: self._claimant(run.user).time for run in snapshot.runs}
        self._rooms = {user: self._claimant(user).room for user in self.times}
        self.backlog: dict[tuple[int, str], float] = {}
        """GPU-seconds that wait, by class and checkpoint."""
        self.pace: dict[int, float] = {}
        """Of each class, GPU-seconds that a user of weight 1 is entitled to in a second."""
        self._lines: dict[tuple[int, Sequence[object]], Line] = {}
        self._wanted: dict[tuple[int, str], float] = {}
        fairest = min(self.times.values(), default=0.0)
        for run in snapshot.runs:
            level = _class(run.priority, self.times[run.user] - fairest)
            self._add(Open(run, level))
        self.levels = sorted({level for level, _ in self._lines}, reverse=True)
        self._share(len(snapshot.seats))

    def users(self, level: int, key: Sequence[object] = ()) -> Iterator[tuple[float, list[Open]]]:
        """(time, runs) of the users of a class who have jobs of a kind, the fairest first.

        Args:
            key: nothing, (checkpoint,), (checkpoint, loras) or a whole kind.
        """
        line = self._lines.get((level, tuple(key)))
        place = 0
        while line and place < len(line.order):
            time, user = line.order[place]
            runs = line.runs[user]
            while runs and not runs[0].left:
                runs.pop(0)
            if not runs or self._rooms[user] == 0:
                del line.order[place]
            elif self.times[user] != time:
                del line.order[place]
                insort(line.order, (self.times[user], user))
            else:
                yield time, runs
                place += 1

    def of(self, level: int, user: int) -> Sequence[Open]:
        """The runs of a user in a class, in their order."""
        return self._lines[level, ()].runs[user]

    def holds(self, lowest: int) -> bool:
        """Whether anything is left of that class or a higher one."""
        return any(
            next(self.users(level), None) is not None for level in self.levels if level >= lowest
        )

    def wanted(self, level: int, checkpoint: str) -> float:
        """Cards that would serve a checkpoint if each user had their share right now."""
        return self._wanted.get((level, checkpoint), 0.0)

    def take(self, open_run: Open, seconds: float) -> None:
        """A job of the run has a place where it takes so many GPU-seconds."""
        run = open_run.run
        open_run.left -= 1
        self.times[run.user] += seconds / self._claimant(run.user).weight
        self.backlog[open_run.level, run.checkpoint] -= run.cost
        if (room := self._rooms[run.user]) is not None:
            self._rooms[run.user] = room - 1

    def _add(self, open_run: Open) -> None:
        run, level = open_run.run, open_run.level
        time = self.times[run.user]
        waiting = self.backlog.get((level, run.checkpoint), 0.0)
        self.backlog[level, run.checkpoint] = waiting + run.cost * run.count
        for key in keys(run.kind):
            line = self._lines.get((level, key))
            if line is None:
                line = self._lines[level, key] = Line()
            line.add(open_run, time)

    def _share(self, cards: int) -> None:
        """Share the cards out to the checkpoints of the users' most important runs."""
        for level in self.levels:
            line = self._lines[level, ()]
            weights = {user: self._claimant(user).weight for user in line.runs}
            each = self.pace[level] = cards / sum(weights.values())
            for user, runs in line.runs.items():
                first = runs[0].run.priority
                wanted: dict[str, float] = {}
                for one in runs:
                    if one.run.priority == first:
                        seconds = wanted.get(one.run.checkpoint, 0.0)
                        wanted[one.run.checkpoint] = seconds + one.run.cost * one.run.count
                total = max(sum(wanted.values()), 1e-9)
                part = min(weights[user] * each / total, 1 / SOON)
                for name, seconds in wanted.items():
                    before = self._wanted.get((level, name), 0.0)
                    self._wanted[level, name] = before + part * seconds

    def _claimant(self, user: int) -> Claimant:
        return self._users.get(user, _ANYBODY)


def keys(kind: Kind) -> tuple[Sequence[object], ...]:
    """What jobs of a kind can be asked for by, from anything to exactly this."""
    return (), kind[:1], kind[:2], kind[:3]


def _class(priority: int, ahead: float) -> int:
    return min(rank(priority), INTERACTIVE if ahead < BURST else NORMAL)

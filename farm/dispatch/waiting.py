"""What waits, in the orders that placement asks for: by class, by user, by what it needs."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import inf
from statistics import median_low

from farm.dispatch.demand import wanted
from farm.dispatch.snapshot import Claimant, Kind, Run, Snapshot
from farm.spec.batch import INTERACTIVE_FROM, NORMAL_FROM, rank

INTERACTIVE, NORMAL = rank(INTERACTIVE_FROM), rank(NORMAL_FROM)

BURST = 600.0
"""GPU-seconds ahead of those who take turns at which a user's interactive jobs count as normal."""

_ANYBODY = Claimant()


class Open:
    """A run of which ``left`` jobs are not placed yet."""

    __slots__ = ("left", "level", "run")

    def __init__(self, run: Run, level: int) -> None:
        self.run = run
        self.level = level
        self.left = run.count


ByUser = dict[int, list[Open]]


class Line:
    """Users with jobs of one kind, the one who has had least first.

    A user's time only grows while places are filled, so a place in the line that is out of date
    is too far ahead, and is put right when it is looked at.
    """

    def __init__(self, runs: ByUser, times: Mapping[int, float]) -> None:
        self.runs = runs
        self.order = sorted((times[user], user) for user in runs)

    @property
    def count(self) -> int:
        return sum(map(len, self.runs.values()))


_NOBODY = Line({}, {})


class Waiting:
    """The runs of a snapshot while places are filled."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._users = snapshot.users
        self._jobs = sum(run.count for run in snapshot.runs)
        users = dict.fromkeys(run.user for run in snapshot.runs)
        self.times = {user: self._claimant(user).time for user in users}
        self._rooms = {user: self._claimant(user).room for user in self.times}
        self.backlog: dict[tuple[int, str], float] = {}
        """GPU-seconds that wait, by class and checkpoint."""
        self.loads: dict[str, float] = {}
        """Seconds that a checkpoint takes to load."""
        self.checkpoints: dict[int, list[str]] = {}
        """Of each class, those that are waited for, or were."""
        self._lines: dict[tuple[int, Sequence[object]], Line] = {}
        self._line_up(snapshot.runs)
        self.levels = sorted({level for level, key in self._lines if not key}, reverse=True)
        cards = len(snapshot.seats)
        classes = {level: self._lines[level, ()].runs for level in self.levels}
        self.pace = {
            level: cards / sum(self._claimant(user).weight for user in users)
            for level, users in classes.items()
        }
        """Of each class, GPU-seconds that a user of weight 1 is entitled to in a second."""
        runs_of = {
            level: {user: [one.run for one in runs] for user, runs in users.items()}
            for level, users in classes.items()
        }
        self.wanted = wanted({user: self._claimant(user) for user in self.times}, runs_of, cards)
        """Cards that should serve each checkpoint, if each user had their share right now."""

    @property
    def usual(self) -> float:
        """Seconds that a waiting job takes on average."""
        return sum(self.backlog.values()) / max(1, self._jobs)

    def users(self, level: int, key: Sequence[object] = ()) -> Iterator[tuple[float, list[Open]]]:
        """(time, runs) of the users of a class who have jobs of a kind, the fairest first.

        Args:
            key: nothing, (checkpoint,), (checkpoint, loras) or a whole kind.
        """
        line = self._line(level, tuple(key))
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

    def take(self, open_run: Open, seconds: float) -> None:
        """A job of the run has a place where it takes so many GPU-seconds."""
        run = open_run.run
        open_run.left -= 1
        self.times[run.user] += seconds / self._claimant(run.user).weight
        self.backlog[open_run.level, run.checkpoint] -= run.cost
        if (room := self._rooms[run.user]) is not None:
            self._rooms[run.user] = room - 1

    def _line_up(self, runs: Sequence[Run]) -> None:
        """Everybody by class, and by class and checkpoint. There are thousands, so this is what
        placing takes longest for."""
        turns = [self.times[user] for user in contenders(runs)]
        level_with = median_low(turns) if turns else inf
        levels: dict[tuple[int, int], int] = {}
        classes: defaultdict[int, ByUser] = defaultdict(lambda: defaultdict(list))
        wholes: defaultdict[tuple[int, str], ByUser] = defaultdict(lambda: defaultdict(list))
        for run in runs:
            user, checkpoint = run.user, run.checkpoint
            level = levels.get((run.priority, user))
            if level is None:
                level = _class(run.priority, self.times[user] - level_with)
                levels[run.priority, user] = level
            whole, waiting = (level, checkpoint), Open(run, level)
            classes[level][user].append(waiting)
            wholes[whole][user].append(waiting)
            self.backlog[whole] = self.backlog.get(whole, 0.0) + run.cost * run.count
            self.loads[checkpoint] = run.load
        for level, users in classes.items():
            self._lines[level, ()] = Line(users, self.times)
        for (level, checkpoint), users in wholes.items():
            self.checkpoints.setdefault(level, []).append(checkpoint)
            self._lines[level, (checkpoint,)] = Line(users, self.times)

    def _line(self, level: int, key: tuple[object, ...]) -> Line | None:
        """The line of a kind; those of LoRAs and sizes are drawn up when they are asked for."""
        line = self._lines.get((level, key))
        if line is not None or len(key) < 2:
            return line
        whole = self._lines.get((level, key[:1]), _NOBODY)
        alike = [
            (user, one)
            for user, runs in whole.runs.items()
            for one in runs
            if one.run.loras == key[1] and key[2:] in ((), (one.run.shape,))
        ]
        # Mostly all are alike, and one line will do.
        if len(alike) == whole.count:
            line = whole
        else:
            runs: ByUser = {}
            for user, one in alike:
                runs.setdefault(user, []).append(one)
            line = Line(runs, self.times)
        self._lines[level, key] = line
        return line

    def _claimant(self, user: int) -> Claimant:
        return self._users.get(user, _ANYBODY)


def closest(kind: Kind) -> tuple[tuple[object, ...], ...]:
    """What jobs like those of a kind are asked for by: exactly like them, or but for their size."""
    return tuple(kind), kind[:2]


def contenders(runs: Sequence[Run]) -> set[int]:
    """Who takes turns: the users of the highest class that has to wait. Interactive work does not,
    and lower classes have no turn."""
    levels: dict[int, int] = {}
    for run in runs:
        if run.priority < INTERACTIVE_FROM and run.user not in levels:  # their first is highest
            levels[run.user] = rank(run.priority)
    highest = max(levels.values(), default=0)
    return {user for user, level in levels.items() if level == highest}


def _class(priority: int, ahead: float) -> int:
    return min(rank(priority), INTERACTIVE if ahead < BURST else NORMAL)

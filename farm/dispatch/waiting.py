"""What waits, in the orders that placement asks for: by class, by user, by what it needs."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from math import copysign, inf
from statistics import median_low

from farm.dispatch.snapshot import Claimant, Kind, Run, Snapshot
from farm.spec.batch import INTERACTIVE_FROM, rank

INTERACTIVE, NORMAL = 2, 1

BURST = 600.0
"""GPU-seconds ahead of those who take turns at which a user's interactive jobs count as normal."""

LEVEL = 60.0
"""Seconds behind or ahead that are as good as level: no checkpoint is loaded for them."""
CATCH_UP = 60.0
"""Seconds in which one who has fallen further behind should be level again."""
MOST = 3.0

WORTH = 12.0
"""Loads that the work waiting for a checkpoint must be worth, for each card that holds it: what
loads of busy cards cost is then less than a twelfth of what they bring."""
LITTLE_WORTH = 3.0
"""The same where cards are left that have nothing to do: their time is free, but not what a load
takes of disks, and of checkpoints that must go. With 2, half of all loads came when users' work
ran out, and the last job ended no sooner."""

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

    @property
    def count(self) -> int:
        return sum(map(len, self.runs.values()))

    def add(self, open_run: Open, time: float) -> None:
        user = open_run.run.user
        if user not in self.runs:
            self.runs[user] = []
            insort(self.order, (time, user))
        self.runs[user].append(open_run)


_NOBODY = Line()


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
        self.pace: dict[int, float] = {}
        """Of each class, GPU-seconds that a user of weight 1 is entitled to in a second."""
        self._lines: dict[tuple[int, Sequence[object]], Line] = {}
        self.wanted: dict[str, float] = {}
        """Cards that should serve each checkpoint, if each user had their share right now."""
        turns = [self.times[user] for user in contenders(snapshot.runs)]
        level_with = median_low(turns) if turns else inf
        levels: dict[tuple[int, int], int] = {}
        for run in snapshot.runs:
            level = levels.get((run.priority, run.user))
            if level is None:
                level = _class(run.priority, self.times[run.user] - level_with)
                levels[run.priority, run.user] = level
            self._add(Open(run, level))
        self.levels = sorted(set(levels.values()), reverse=True)
        self._share(len(snapshot.seats))

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

    def _add(self, open_run: Open) -> None:
        run, level = open_run.run, open_run.level
        time = self.times[run.user]
        whole = level, run.checkpoint
        self.backlog[whole] = self.backlog.get(whole, 0.0) + run.cost * run.count
        self.loads[run.checkpoint] = run.load
        if (level, (run.checkpoint,)) not in self._lines:
            self.checkpoints.setdefault(level, []).append(run.checkpoint)
        for key in ((level, ()), (level, (run.checkpoint,))):
            if key not in self._lines:
                self._lines[key] = Line()
            self._lines[key].add(open_run, time)

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
        line = whole if len(alike) == whole.count else Line()
        if line is not whole:
            for user, one in alike:
                line.add(one, self.times[user])
        self._lines[level, key] = line
        return line

    def _share(self, cards: int) -> None:
        """Share the cards out, class by class, to what users want of them."""
        left = float(cards)
        for level in self.levels:
            users = self._lines[level, ()].runs
            weights = {user: self._claimant(user).weight for user in users}
            pace = self.pace[level] = cards / sum(weights.values())
            if level == INTERACTIVE:
                continue  # it is soon over, and moves no checkpoints
            wants = {user: _wants(runs) for user, runs in users.items()}
            most = {user: sum(wanted.values()) for user, wanted in wants.items()}
            middle = median_low([self.times[user] for user in users])
            lifted = {
                user: weight * _lift((middle - self.times[user]) / pace)
                for user, weight in weights.items()
            }
            got = shared(left, lifted, most)
            rest = {user: most[user] - got[user] for user in users}
            more = shared(left - sum(got.values()), weights, rest)
            for user, wanted in wants.items():
                part = (got[user] + more[user]) / max(most[user], 1e-9)
                left -= got[user] + more[user]
                for name, amount in wanted.items():
                    self.wanted[name] = self.wanted.get(name, 0.0) + amount * part
        self._employ(left)

    def _employ(self, idle: float) -> None:
        """Cards that nobody should have by that may load for less: they would do nothing else."""
        if idle < 1:
            return
        more: dict[str, float] = {}
        for level in self.levels:
            for runs in self._lines[level, ()].runs.values():
                for name, amount in _wants(runs).items():
                    more[name] = more.get(name, 0.0) + amount * WORTH / LITTLE_WORTH
        rest = {
            name: max(0.0, amount - self.wanted.get(name, 0.0)) for name, amount in more.items()
        }
        part = min(1.0, idle / max(sum(rest.values()), 1e-9))
        for name, amount in rest.items():
            self.wanted[name] = self.wanted.get(name, 0.0) + amount * part

    def _claimant(self, user: int) -> Claimant:
        return self._users.get(user, _ANYBODY)


def shared(
    amount: float, weights: Mapping[int, float], most: Mapping[int, float]
) -> dict[int, float]:
    """Share an amount by weight, to nobody more than they want (max-min fair)."""
    found = dict.fromkeys(weights, 0.0)
    order = sorted((most[one] / weights[one], one) for one in weights if weights[one] > 0)
    total = sum(weights[one] for _, one in order)
    for ratio, one in order:
        found[one] = weights[one] * min(ratio, amount / total)
        amount -= found[one]
        total -= weights[one]
    return found


def _lift(seconds: float) -> float:
    """How many times their share somebody should have who is so far behind, ahead if negative."""
    beyond = max(0.0, abs(seconds) - LEVEL)
    return min(MOST, max(0.0, 1.0 + copysign(beyond, seconds) / CATCH_UP))


def _wants(runs: Sequence[Open]) -> dict[str, float]:
    """Cards that a user's most important runs could use, by checkpoint."""
    wants: dict[str, float] = {}
    for one in runs:
        run = one.run
        if run.priority == runs[0].run.priority:
            cards = run.cost * run.count / max(WORTH * run.load, 1e-9)
            wants[run.checkpoint] = wants.get(run.checkpoint, 0.0) + cards
    return wants


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

"""What users wait for: runs of jobs that are alike, in a queue for each user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from farm.spec.batch import INTERACTIVE_FROM, NORMAL_FROM, rank

INTERACTIVE, NORMAL = rank(INTERACTIVE_FROM), rank(NORMAL_FROM)


class Kind(NamedTuple):
    """What jobs have in common that run well together: in one forward, if all is the same.

    Attributes:
        loras: names and strengths on the UNet; another set is put on before others run.
        shape: width and height in pixels.
    """

    checkpoint: str
    loras: tuple[tuple[str, float], ...] = ()
    shape: tuple[int, int] = (0, 0)


Key: TypeAlias = tuple[object, ...]
"""What some jobs have in common: a kind, or as much of one from its beginning."""

Head: TypeAlias = tuple[int, int]
"""Where a run begins: its batch, and the number of its first job."""


@dataclass(frozen=True)
class Run:
    """Jobs of one batch that need the same checkpoint: ``count`` from ``first`` on, or one retry.

    Attributes:
        first: number of the first of them.
        passed: seconds since it was first passed over for a warmer one; 0 if it was not since a
            job of it was last placed.
        retry: it failed before.
        avoid: the worker that failed it last.
        alone: it is suspected of killing workers, and gets a session to itself.
        user: whose it is.
        cost: seconds that one of its jobs is expected to take on a card of speed 1.
        size: its units of work, see :func:`farm.dispatch.cost.units`.
        load: seconds that its checkpoint takes to load.
        loras, shape: see :class:`Kind`.
        largest: pixels of the largest image among its jobs, by checkpoint: others that it needs
            beside its own stand there too; empty if that is not known.
        tags: that a worker must have.
        upscalers: models that its host must have.
    """

    batch_id: int
    checkpoint: str
    priority: int
    count: int
    first: int = 0
    passed: float = 0.0
    retry: bool = False
    avoid: str | None = None
    alone: bool = False
    user: int = 0
    cost: float = 1.0
    size: float = 1.0
    load: float = 0.0
    loras: tuple[tuple[str, float], ...] = ()
    shape: tuple[int, int] = (0, 0)
    largest: Mapping[str, int] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    upscalers: frozenset[str] = frozenset()

    @cached_property
    def kind(self) -> Kind:
        return Kind(self.checkpoint, self.loras, self.shape)

    @cached_property
    def turn(self) -> tuple[object, ...]:
        """What its user's runs are served in the order of."""
        return -self.priority, self.batch_id, not self.retry, self.first

    @cached_property
    def head(self) -> Head:
        return self.batch_id, self.first


class Queue:
    """What a user waits for. Most queues are the same in the next snapshot, so what follows from
    one is worked out once.

    Attributes:
        runs: in the order in which the user wants them served, by priority first; at least one.
        jobs: in all of them.
        work: seconds on a card of speed 1, by checkpoint.
        loads: seconds that each of these checkpoints takes to load.
    """

    def __init__(self, user: int, runs: Sequence[Run]) -> None:
        self.user = user
        self.runs = runs
        self.jobs = 0
        self.work: dict[str, float] = {}
        self.loads: dict[str, float] = {}
        for run in runs:
            name, count = run.checkpoint, run.count
            self.jobs += count
            self.work[name] = self.work.get(name, 0.0) + run.cost * count
            self.loads[name] = run.load

    @cached_property
    def classes(self) -> Mapping[int, Queue]:
        """Its parts by class, the highest first."""
        return self._classes(INTERACTIVE)

    @cached_property
    def calmed(self) -> Mapping[int, Queue]:
        """The same where what is interactive counts as normal."""
        return self._classes(NORMAL)

    @cached_property
    def most_important(self) -> Queue:
        """Those of its highest priority."""
        highest = self.runs[0].priority
        if self.runs[-1].priority == highest:
            return self
        return Queue(self.user, [run for run in self.runs if run.priority == highest])

    @cached_property
    def by_batch(self) -> Mapping[int, Sequence[Run]]:
        """Its runs in the order of their jobs."""
        found: defaultdict[int, list[Run]] = defaultdict(list)
        for run in sorted(self.runs, key=attrgetter("first")):
            found[run.batch_id].append(run)
        return found

    def alike(self, key: Key) -> Sequence[Run]:
        """Its runs whose kind begins like that."""
        if not key:
            return self.runs
        if len(key) == len(Kind._fields):
            return self._by_kind.get(key, ())
        found = [kind for kind in self._by_kind if kind[: len(key)] == key]
        if len(found) == 1:
            return self._by_kind[found[0]]
        return [run for run in self.runs if run.kind in found]

    @cached_property
    def _by_kind(self) -> Mapping[Key, Sequence[Run]]:
        found: defaultdict[Key, list[Run]] = defaultdict(list)
        for run in self.runs:
            found[run.kind].append(run)
        return found

    def _classes(self, highest: int) -> Mapping[int, Queue]:
        def level(run: Run) -> int:
            return min(rank(run.priority), highest)

        if level(self.runs[0]) == level(self.runs[-1]):
            return {level(self.runs[0]): self}
        return {found: Queue(self.user, list(runs)) for found, runs in groupby(self.runs, level)}


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
                made = own, Queue(user, sorted(own, key=attrgetter("turn")))
            self._made[user] = made
        return [queue for _, queue in self._made.values()]

"""Runs a trace: events in the order of time, the dispatcher's own code at each of its cycles."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterator
from itertools import accumulate, islice
from math import inf
from random import Random

from farm.db.backlog import Entitled, Spent
from farm.db.leases import Claim, Lease
from farm.dispatch.accounts import Accounts
from farm.dispatch.heads import DEPTH, EACH
from farm.dispatch.queues import Kind, Queues, Run
from farm.dispatch.simulator.policies import Policy
from farm.dispatch.simulator.results import Record
from farm.dispatch.simulator.trace import Batch, Part, Trace
from farm.dispatch.simulator.worker import Job, Worker
from farm.dispatch.snapshot import Seat, Snapshot
from farm.spec.batch import rank

IDLE = 1.0
"""Seconds between cycles when nothing happens, as in the dispatcher."""
SPREAD = 0.1
"""How much jobs of a batch differ in what they take, either way."""


class _Stretch:
    """Jobs of a batch on one checkpoint, from ``next`` to before ``end`` not placed yet."""

    __slots__ = ("end", "next", "part", "passed")

    def __init__(self, part: Part, first: int) -> None:
        self.part = part
        self.next = first
        self.end = first + part.jobs
        self.passed: float | None = None

    def give_way(self, seconds: float) -> None:
        """It is passed over, once more so many seconds after the last time or for the first."""
        self.passed = 0.0 if self.passed is None else self.passed + seconds


class _Open:
    """A batch of which something is not placed yet."""

    __slots__ = ("_random", "_spread", "batch", "id", "left")

    def __init__(self, id: int, batch: Batch, seed: int) -> None:
        self.id = id
        self.batch = batch
        firsts = accumulate((part.jobs for part in batch.parts), initial=0)
        self.left = [_Stretch(*each) for each in zip(batch.parts, firsts, strict=False)]
        # Of its own, so that a job takes the same whatever policy places it, when, and where.
        self._random = Random(f"{seed} {id}")
        self._spread: list[float] = []

    def of(self, ord: int) -> _Stretch:
        return next(one for one in self.left if one.next <= ord < one.end)

    def take(self, ord: int) -> Job:
        """The next job of a stretch."""
        came, stretch = self.batch, self.of(ord)
        stretch.next += 1
        while len(self._spread) <= ord:
            self._spread.append(self._random.uniform(1 - SPREAD, 1 + SPREAD))
        level, part = rank(came.priority), stretch.part
        seconds = part.seconds * self._spread[ord]
        return Job(level, self.id, ord, came.user, part.checkpoint, seconds, came.at)


class World:
    """A farm, a trace of work, a policy, and a clock.

    Args:
        interval: least seconds between two cycles of the dispatcher.
        seed: of how jobs of a batch differ.
    """

    def __init__(
        self, trace: Trace, policy: Policy, *, interval: float = 0.25, seed: int = 1
    ) -> None:
        self._trace = trace
        self._policy = policy
        self._interval = interval
        self._seed = seed
        self._accounts = Accounts()
        self._workers = [Worker(card, trace.checkpoints) for card in trace.cards]
        self._numbers = {card.name: number for number, card in enumerate(trace.cards)}
        self._seats: dict[int, Seat] = {}
        self._queues: dict[int, list[tuple[int, int]]] = {}
        self._open: dict[int, _Open] = {}
        self._in_flight = dict.fromkeys(trace.users, 0)
        self._last: dict[int, Kind] = {}
        self._ended: list[Spent] = []
        self._events: list[tuple[float, int]] = []
        self._due, self._cycled, self._decided = inf, -inf, 0.0
        self.record = Record(trace)

    def run(self) -> Record:
        """Until everything is done, or nothing goes on any more."""
        arrivals = list(enumerate(self._trace.batches, 1))[::-1]
        while True:
            arrival = arrivals[-1][1].at if arrivals else inf
            event = self._events[0][0] if self._events else inf
            now = min(arrival, event, self._due)
            if now == inf:
                return self.record
            # All that is of this instant comes before the cycle, which sees the whole of it.
            if arrival <= now:
                self._arrive(*arrivals.pop())
                self._wake(now)
            elif event <= now:
                self._end(*heapq.heappop(self._events))
                self._wake(now)
            else:
                self._cycle(now)

    def _wake(self, now: float) -> None:
        """Something happened."""
        if self._open:
            self._due = min(self._due, max(now, self._cycled + self._interval))

    def _arrive(self, id: int, batch: Batch) -> None:
        self._open[id] = _Open(id, batch, self._seed)
        insort(self._queues.setdefault(batch.user, []), (-batch.priority, id))

    def _end(self, now: float, number: int) -> None:
        turn = self._workers[number].end()
        job = turn.job
        self._in_flight[job.user] -= 1
        self._seats.pop(number, None)
        seconds = turn.load + turn.work
        self._ended.append(Spent(job.batch, job.ord, 1, "succeeded", seconds, turn.load))
        self.record.ended(now, turn)
        self._begin(now, number)

    def _begin(self, now: float, number: int) -> None:
        if turn := self._workers[number].begin(now):
            self.record.began(now, turn)
            heapq.heappush(self._events, (now + turn.load + turn.work, number))

    def _cycle(self, now: float) -> None:
        """One round of the dispatcher."""
        self._accounts.settle(self._ended)
        self._ended = []
        snapshot = self._snapshot()
        found = self._policy(snapshot, now)
        passed = [self._open[id].of(ord) for id, ord in found.passed]
        served = [(one.batch_id, self._open[one.batch_id].of(one.first)) for one in found.claims]
        leases = [lease for claim in found.claims for lease in self._claim(now, claim)]
        self._accounts.charge(leases, snapshot)
        for stretch in passed:
            stretch.give_way(now - self._decided)
        for id, stretch in served:
            self._served(id, stretch)
        self._cycled = now
        if any(seat.held < seat.capacity for seat in snapshot.seats):
            self._decided = now
        # Nothing placed and nobody passed over: until something happens, nothing else would be.
        self._due = now + IDLE if self._open and (leases or found.passed) else inf
        self.record.cycle(now, [self._open[run.batch_id].batch for run in self._runs()])

    def _snapshot(self) -> Snapshot:
        queues = Queues().of(self._runs())
        seats = [self._seat(number) for number in range(len(self._workers))]
        waiting = {queue.user for queue in queues}
        users = [
            Entitled(user.id, user.weight, user.max_in_flight, self._in_flight[user.id])
            for user in self._trace.users.values()
            if user.id in waiting or self._in_flight[user.id]
        ]
        return Snapshot(seats, queues, self._accounts.claimants(users, queues))

    def _runs(self) -> Iterator[Run]:
        for user, queue in self._queues.items():
            for _, id in islice(queue, EACH):
                batch = self._open[id]
                for stretch in batch.left[:DEPTH]:
                    yield self._run(user, batch, stretch)

    def _run(self, user: int, batch: _Open, stretch: _Stretch) -> Run:
        costs, part = self._accounts.costs, stretch.part
        return Run(
            batch.id,
            part.checkpoint,
            batch.batch.priority,
            stretch.end - stretch.next,
            stretch.next,
            stretch.passed or 0.0,
            user=user,
            cost=costs.estimate(part.checkpoint, part.size),
            size=part.size,
            load=costs.load(part.checkpoint),
        )

    def _seat(self, number: int) -> Seat:
        if number not in self._seats:
            worker, card = self._workers[number], self._trace.cards[number]
            self._seats[number] = Seat(
                card.name,
                card.name,
                card.places,
                worker.held,
                warm=worker.warm,
                can_load=worker.fits,
                last=self._last.get(number),
                card=card.kind,
                speed=self._accounts.costs.speed(card.kind),
                ahead=self._accounts.ahead(card.name),
            )
        return self._seats[number]

    def _claim(self, now: float, claim: Claim) -> Iterator[Lease]:
        batch = self._open[claim.batch_id]
        number = self._numbers[claim.session_id]
        worker = self._workers[number]
        for ord in claim.jobs:
            job = batch.take(ord)
            worker.give(job)
            self._in_flight[job.user] += 1
            self._last[number] = Kind(job.checkpoint)
            yield Lease(batch.id, job.ord, 1, claim.session_id)
        self._seats.pop(number, None)
        if worker.running is None:
            self._begin(now, number)

    def _served(self, id: int, stretch: _Stretch) -> None:
        """Jobs of the batch were placed."""
        batch = self._open.get(id)
        if batch is None:
            return
        self.record.passed(stretch.passed or 0.0)
        stretch.passed = None
        if stretch in batch.left and stretch.next == stretch.end:
            batch.left.remove(stretch)
        if not batch.left:
            del self._open[id]
            queue = self._queues[batch.batch.user]
            queue.remove((-batch.batch.priority, id))
            if not queue:
                del self._queues[batch.batch.user]

"""What the farm has to do, what does it, and so when each batch will end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, cached_property
from time import monotonic
from typing import NamedTuple

from farm.db import forecasts, rates, sessions, stock
from farm.db.database import Database
from farm.db.forecasts import Left
from farm.db.sessions import Session
from farm.db.spans import Span
from farm.db.stock import Stock
from farm.dispatch.cost import Costs
from farm.dispatch.forecast import NEW, Cards, Eta, TrackRecord, Work, finish_times
from farm.dispatch.parts import Part, stored_parts
from farm.spec.job import Models

FRESH = 2.0
"""Seconds for which a picture of the farm will do."""
LEARN = 60.0
"""Seconds for which costs and past errors will do."""
UNDER_WAY = 0.5
"""Of a job in flight, what is left of it on average."""
_MANY = 5000

_JUDGED = 3000


class Asked(NamedTuple):
    """What a batch asks of workers: that each of its jobs finds one with its models, in each way
    there is, and all the tags."""

    models: frozenset[Models]
    tags: frozenset[str]

    @property
    def checkpoints(self) -> frozenset[str]:
        return frozenset(name for each in self.models for name in each.checkpoints)


@dataclass(frozen=True)
class Picture:
    """The farm at a moment.

    Attributes:
        left, works: what is left of each open batch, in jobs and in seconds.
        asked: what each of them asks of workers.
        weights: of users.
        live: sessions that take jobs.
        there: what hosts have.
        measured: checkpoints whose jobs have been timed.
        record: of forecasts.
    """

    left: Sequence[Left]
    works: Sequence[Work]
    asked: Mapping[int, Asked]
    weights: Mapping[int, float]
    live: Sequence[Session]
    there: Stock
    costs: Costs
    measured: frozenset[str]
    record: TrackRecord

    @cached_property
    def _somebody(self) -> Callable[[Models, frozenset[str]], bool]:
        """Whether a session has these models and tags; batches ask for the same ones."""

        @cache
        def found(models: Models, tags: frozenset[str]) -> bool:
            return any(
                tags <= {*session.tags} and self.there.has(session.host, *models)
                for session in self.live
            )

        return found

    @property
    def cards(self) -> Cards:
        return cards(self.live, self.costs)

    @property
    def held(self) -> frozenset[str]:
        """Checkpoints that some session holds."""
        return frozenset(name for session in self.live for name in session.resident)

    def able(self, asked: Asked) -> list[Session]:
        """The sessions that could make some of a batch's jobs."""
        return [
            session
            for session in self.live
            if asked.tags <= {*session.tags}
            and any(self.there.has(session.host, *each) for each in asked.models)
        ]

    def can_end(self, asked: Asked) -> bool:
        """Whether there is a session for each of a batch's jobs."""
        return all(self._somebody(each, asked.tags) for each in asked.models)

    @cached_property
    def models(self) -> Mapping[float, float]:
        """Seconds until each open batch ends, as costs add up; nothing of those that cannot."""
        if not self.live:
            return {}
        ending = {asked for asked in set(self.asked.values()) if self.can_end(asked)}
        works = [work for work in self.works if self.asked[int(work.batch_id)] in ending]
        return finish_times(works, self.weights, self.cards)

    @cached_property
    def etas(self) -> Mapping[float, Eta]:
        """When each open batch ends, in seconds from now."""
        return {id: self.record.eta(seconds) for id, seconds in self.models.items()}

    def timed(self, batch_id: int) -> bool:
        """Whether jobs of all checkpoints of an open batch have been timed; else when it ends is
        guessed."""
        return self.asked[batch_id].checkpoints <= self.measured

    def with_new(self, work: Work) -> float:
        """Seconds until one more batch would end, as costs add up; the farm must have cards."""
        return finish_times([*self.works, work], self.weights, self.cards)[NEW]


class Outlook:
    """Pictures of the farm, hardly older than :data:`FRESH`. Safe with threads."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._lock = threading.Lock()
        self._parts: dict[int, list[Part]] = {}
        self._picture: Picture | None = None
        self._seen = self._learnt = 0.0
        self._costs = Costs()
        self._measured: frozenset[str] = frozenset()
        self._record = TrackRecord()

    def now(self, asked: Set[str] = frozenset()) -> Picture:
        """The farm as it is, or as it was while somebody else looks.

        Args:
            asked: checkpoints whose costs matter: what was not measured when costs were last learnt
                may have been since.
        """
        seen = self._picture
        if seen and monotonic() - self._seen < FRESH:
            return seen
        if not self._lock.acquire(blocking=seen is None) and seen:
            return seen
        try:
            if self._picture is None or monotonic() - self._seen > FRESH:
                self._learn(asked)
                self._picture = self._look()
                self._seen = monotonic()
            return self._picture
        finally:
            self._lock.release()

    def _learn(self, asked: Set[str]) -> None:
        lasts = LEARN if self._measured and asked <= self._measured else FRESH
        if self._learnt and monotonic() - self._learnt < lasts:
            return
        known, self._costs = rates.measured(self._db), Costs()
        self._costs.know(known)
        self._measured = frozenset(known.rates)
        past = forecasts.past(self._db, limit=_JUDGED)
        self._record = TrackRecord((one.model, one.taken) for one in past)
        self._learnt = monotonic()

    def _look(self) -> Picture:
        left = forecasts.left(self._db, limit=_MANY)
        live = [session for session in sessions.live(self._db) if session.takes_jobs]
        held = frozenset(name for session in live for name in session.resident)
        self._read(left)
        left = [one for one in left if self._parts.get(one.id)]
        return Picture(
            left=left,
            works=[self._work(one, held) for one in left],
            asked={one.id: _left(one, self._parts[one.id]) for one in left},
            weights={one.user_id: one.weight for one in left},
            live=live,
            there=stock.stock(self._db),
            costs=self._costs,
            measured=self._measured,
            record=self._record,
        )

    def _read(self, left: Sequence[Left]) -> None:
        """Know what each of these batches consists of, and no others; that never changes."""
        known = {one.id: self._parts[one.id] for one in left if one.id in self._parts}
        new = {one.id: one.total for one in left if one.id not in known}
        self._parts = {**known, **stored_parts(self._db, new)}

    def _work(self, left: Left, held: frozenset[str]) -> Work:
        parts = self._parts[left.id]
        seconds = work_of(parts, self._costs, held, spans=left.spans)
        if begun := UNDER_WAY * left.in_flight + left.waiting:
            seconds += begun * work_of(parts, self._costs) / left.total
        load = slowest_load(parts, self._costs)
        return Work(left.id, left.user_id, left.priority, seconds, left.jobs, load)


def work_of(
    parts: Iterable[Part],
    costs: Costs,
    held: frozenset[str] | None = None,
    *,
    spans: Sequence[Span] | None = None,
) -> float:
    """Seconds of a card of speed 1 that some jobs take.

    Args:
        held: the checkpoints that need not be loaded; None to leave loads out.
        spans: of the jobs; None for all.
    """
    counted = [(part, part.jobs if spans is None else part.among(spans)) for part in parts]
    jobs = sum(
        costs.estimate(part.checkpoint, part.size, part.upscales) * count for part, count in counted
    )
    if held is None:
        return jobs
    cold = _checkpoints(part for part, count in counted if count) - held
    return jobs + sum(map(costs.load, cold))


def slowest_load(parts: Iterable[Part], costs: Costs) -> float:
    """Seconds of the load that takes longest among those of a batch."""
    return max(map(costs.load, _checkpoints(parts)))


def cards(live: Sequence[Session], costs: Costs) -> Cards:
    """What these sessions can do together."""
    return Cards(len(live), sum(costs.speed(session.card) for session in live))


def asked_of(parts: Iterable[Part], tags: Iterable[str]) -> Asked:
    """What these jobs ask of workers."""
    return Asked(frozenset(each for part in parts for each in part.models), frozenset(tags))


def _left(left: Left, parts: Sequence[Part]) -> Asked:
    """Of the jobs that nobody has claimed, or of all where only the last are left."""
    ahead = [part for part in parts if part.among(left.spans)]
    return asked_of(ahead or parts, left.tags)


def _checkpoints(parts: Iterable[Part]) -> frozenset[str]:
    return frozenset(name for part in parts for name in part.checkpoints)

"""The survey of what waits and who is free: the snapshot that placement decides on."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from farm.db import assets, backlog, sessions, stock
from farm.db.backlog import OpenBatch, Retries, Retry
from farm.db.database import Database
from farm.db.leases import Claim, Lease
from farm.db.sessions import Session
from farm.db.spans import Span
from farm.db.stock import Stock
from farm.dispatch.accounts import Accounts
from farm.dispatch.fit import fit
from farm.dispatch.further import Further
from farm.dispatch.heads import Heads
from farm.dispatch.needs import Need, Needs
from farm.dispatch.placement import Placed
from farm.dispatch.places import Place
from farm.dispatch.queues import Head, Kind, Queue, Queues, Run
from farm.dispatch.snapshot import Seat, Snapshot
from farm.dispatch.sorts import Sorts
from farm.errors import Unavailable
from farm.spec.batch import INTERACTIVE_EXTRA, INTERACTIVE_FROM
from farm.spec.moves import FATAL_CRASHES, runs_alone

_log = logging.getLogger(__name__)

MANY, BATCHES = 2000, 100
"""Jobs to retry that are looked at, and batches that have some."""
_PASSED_BY, _ROUNDS = 60.0, 16
"""Seconds after which batches that were left aside are looked at again, as what fits a card may
have changed; and how often others are looked for at once."""


class Survey:
    """Reads snapshots, and remembers between them what Postgres need not know.

    Args:
        accounts: tell what jobs are expected to take, and what users have had.
    """

    def __init__(self, db: Database, accounts: Accounts) -> None:
        self._accounts = accounts
        self._needs = Needs(db)
        self._retries = Retries(batches=BATCHES, jobs=MANY)
        self._stock = Stock()
        self._sizes: Mapping[str, assets.Size] = {}
        self._told: Mapping[str, Mapping[str, Any]] = {}
        self._fits: dict[str, Mapping[str, int]] = {}
        self._unreadable: set[int] = set()
        self._passed: dict[Head, float] = {}
        self._heads = Heads(self._head, Further(Sorts(db), self._head))
        self._known = Queues()
        self._last: dict[str, Kind] = {}
        self._seats: Sequence[Seat] = ()
        self._parted: dict[tuple[object, ...], bool] = {}
        self._crowd: set[tuple[object, ...]] = set()
        self._free: set[str] = set()
        self._full: frozenset[int] = frozenset()
        self._idle: Sequence[Seat] = ()
        self._passed_by = 0.0

    def refresh(self, db: Database) -> None:
        """Read what changes seldom: which files there are, what fits where; think anew of costs."""
        self._stock = stock.stock(db)
        self._sizes = assets.sizes(db)
        self._told = sessions.fits(db)
        self._fits = {}
        self._parted = {}
        self._heads.forget()

    def set_aside(self, db: Database) -> None:
        """See :meth:`farm.dispatch.heads.Heads.set_aside`."""
        self._heads.set_aside(db)

    def forget(self, batch_id: int) -> None:
        """The batch has ended."""
        self._needs.forget(batch_id)
        self._passed = {head: told for head, told in self._passed.items() if head[0] != batch_id}

    def look(self, db: Database, *, changed: bool = True) -> Snapshot:
        """Who is free, and what waits: nothing where nobody is free.

        Args:
            changed: something may have, beside places that became free.
        """
        if changed:
            self._heads.look_again()
        live = sessions.live(db)
        self._last = {one.id: self._last[one.id] for one in live if one.id in self._last}
        suspects = backlog.suspects(db, crashes=FATAL_CRASHES - 1)
        seats = [self._seat(one) for one in live if one.takes_jobs and one.id not in suspects]
        free = max((seat.capacity - seat.held for seat in seats), default=-INTERACTIVE_EXTRA)
        if free <= -INTERACTIVE_EXTRA:
            return Snapshot(seats, ())
        self._seats = seats
        self._pass_by(db, seats)
        queues = self._queues(db, least=0 if free > 0 else INTERACTIVE_FROM)
        users = backlog.entitled(db, {queue.user for queue in queues})
        claimants = self._accounts.claimants(users, queues)
        self._full = frozenset(user for user, one in claimants.items() if one.room == 0)
        return Snapshot(seats, queues, claimants)

    def note(self, claims: Sequence[Claim], placed: Sequence[Lease], snapshot: Snapshot) -> None:
        """Remember what was claimed, and what was sent to whom last."""
        self._heads.claimed(claims, placed)
        for lease in placed:
            self._last[lease.session_id] = snapshot.run_of(lease.batch_id, lease.ord).kind

    def wait(self, found: Placed, seconds: float) -> None:
        """Count the seconds for which runs are passed over, until a job of theirs is placed.

        Args:
            seconds: since places were last given out, which does not count for who gives way for
                the first time: they may have come a moment ago.
        """
        if not found.claims and self._idle:
            self._retries.turn()
        for head in found.passed:
            before = self._passed.get(head)
            self._passed[head] = 0.0 if before is None else before + seconds
            self._heads.turn(head[0])
        for claim in found.claims:
            for ord in claim.ords or [claim.first]:
                self._passed.pop((claim.batch_id, ord), None)
            self._heads.turn(claim.batch_id)

    def _pass_by(self, db: Database, seats: Sequence[Seat]) -> None:
        """Leave batches aside, lest they hide others behind them, until other sessions are there
        or have a place."""
        crowd: set[tuple[object, ...]] = {
            (seat.session_id, seat.tags, seat.can_load, seat.upscalers) for seat in seats
        }
        free = {seat.session_id for seat in seats if Place(0, seat).has_room(0)}
        late = time.monotonic() - self._passed_by > _PASSED_BY
        if crowd != self._crowd or free - self._free or late:
            if crowd != self._crowd:
                self._crowd, self._parted = crowd, {}
                self._heads.forget()
            self._free, self._passed_by = free, time.monotonic()
            self._heads.take_back()
        self._idle = [seat for seat in seats if seat.session_id in free]
        for _ in range(_ROUNDS):
            self._heads.reach(db, self._idle, full=self._full)
            heads = self._heads.runs(db, least=0)
            if not self._heads.news:
                return
            self._heads.news, self._free = False, free
            behind = self._heads.waiting_behind
            hiding = [run for run in heads if run.user in behind]
            self._heads.leave_aside(_stuck(hiding, seats, free))

    def _seat(self, session: Session) -> Seat:
        last = self._last.get(session.id)
        coming = [last.checkpoint] if last else []
        return Seat(
            session_id=session.id,
            worker=session.worker,
            capacity=session.capacity,
            held=session.running + session.assigned,
            warm=frozenset([*session.resident, *coming]),
            can_load=self._stock.checkpoints.get(session.host),
            upscalers=self._stock.upscalers.get(session.host),
            last=last,
            card=session.card,
            speed=self._accounts.costs.speed(session.card),
            tags=frozenset(session.tags),
            fits=self._most(session),
            ahead=self._accounts.ahead(session.id),
        )

    def _most(self, session: Session) -> Mapping[str, int]:
        """Most pixels of an image on each checkpoint, where the session has told."""
        if session.id not in self._fits:
            told = self._told.get(session.id, {})
            found = {name: fit(told, size) for name, size in self._sizes.items()}
            self._fits[session.id] = {name: one.most for name, one in found.items() if one}
        return self._fits[session.id]

    def _queues(self, db: Database, *, least: int) -> Sequence[Queue]:
        """Retries and the heads of open batches of priority ``least`` and up, by user."""
        runs = [
            self._run(retry, need, head=(retry.batch_id, retry.ord), count=1)
            for retry in self._retries.look(db, least=least)
            if (need := self._need(retry.batch_id, retry.ord, alike=True))
        ]
        runs += self._heads.runs(db, least=least)
        return self._known.of(runs)

    def _head(self, batch: OpenBatch, span: Span, last: bool) -> Run | None:
        """The first jobs of a span that are on one checkpoint; only those that are alike if some
        sessions could make no more than a part of them, unless nothing is looked at behind."""
        first, end = span
        need = self._need(batch.id, first)
        if need and need.mixed and not last and self._parts(need, batch.tags):
            need = self._need(batch.id, first, alike=True)
        if need is None:
            self._heads.leave_aside([batch.id])
            return None
        count = min(need.until, end) - first
        return self._run(batch, need, head=(batch.id, first), count=count)

    def _parts(self, need: Need, tags: Sequence[str]) -> bool:
        """Whether some sessions could make a part of these jobs only."""
        key = need.checkpoint, tuple(need.largest.items()), need.upscalers, frozenset(tags)
        if key not in self._parted:
            least = Run(0, need.checkpoint, 0, 1, tags=frozenset(tags))
            whole = replace(least, largest=need.largest, upscalers=need.upscalers)
            self._parted[key] = any(
                seat.suits(least) and not seat.suits(whole) for seat in self._seats
            )
        return self._parted[key]

    def _need(self, batch_id: int, ord: int, *, alike: bool = False) -> Need | None:
        """What a job needs; None for a batch that cannot be read, which stops no other."""
        if batch_id in self._unreadable:
            return None
        try:
            return self._needs.of(batch_id, ord, alike=alike)
        except Unavailable:
            raise
        except Exception:
            _log.exception("batch %s cannot be read and is left alone", batch_id)
            self._unreadable.add(batch_id)
            return None

    def _run(self, one: OpenBatch | Retry, need: Need, *, head: Head, count: int) -> Run:
        """A job to retry, or some of a batch that are alike."""
        retry = one if isinstance(one, Retry) else None
        return Run(
            batch_id=head[0],
            first=head[1],
            checkpoint=need.checkpoint,
            priority=one.priority,
            count=count,
            passed=self._passed.get(head, 0.0),
            retry=retry is not None,
            avoid=retry.avoid if retry else None,
            alone=retry is not None and runs_alone(retry.crashes),
            user=one.user_id,
            cost=self._accounts.costs.estimate(need.checkpoint, need.size, need.upscales),
            size=need.size,
            load=self._accounts.costs.load(need.checkpoint),
            loras=need.kind.loras,
            shape=need.kind.shape,
            largest=need.largest,
            tags=frozenset(one.tags),
            upscalers=need.upscalers,
        )


def _stuck(runs: Sequence[Run], seats: Sequence[Seat], free: Collection[str]) -> list[int]:
    """Batches of which these sessions can make no run; and all of a user of whom none can be begun
    now, though some sessions are free."""
    idle = [seat for seat in seats if seat.session_id in free]
    ready = {
        run.user
        for run in runs
        if _suited(run, seats if run.priority >= INTERACTIVE_FROM else idle)
    }
    able = {run.batch_id for run in runs if _suited(run, seats)}
    return [
        run.batch_id for run in runs if (idle and run.user not in ready) or run.batch_id not in able
    ]


def _suited(run: Run, seats: Sequence[Seat]) -> bool:
    return any(seat.suits(run) for seat in seats)

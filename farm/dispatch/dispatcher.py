"""The dispatcher: one leader that hands waiting jobs to sessions and tidies up after the dead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext

from farm.broker.queue import Publisher
from farm.db import assets, backlog, leases, sessions, usage
from farm.db.database import Database
from farm.db.rates import rates
from farm.dispatch import health
from farm.dispatch.accounts import Accounts
from farm.dispatch.forecaster import forecasting
from farm.dispatch.housekeeping import Housekeeper
from farm.dispatch.leadership import Leadership, leadership
from farm.dispatch.needs import Needs
from farm.dispatch.placement import Placed, place
from farm.dispatch.reaper import Reaper
from farm.dispatch.snapshot import Run, Seat, Snapshot
from farm.errors import Unavailable
from farm.spec.batch import INTERACTIVE_EXTRA, INTERACTIVE_FROM
from farm.spec.moves import FATAL_CRASHES, runs_alone

_log = logging.getLogger(__name__)

IDLE = 1.0
"""Seconds between cycles when nobody wakes the dispatcher."""

_PAUSE = 0.02
_RETRY = 0.5
_TIDY = 1.0
_CLEAN = 3600.0
_FORGOTTEN_DAYS = 7.0
"""Days without a worker after which the files of a host are forgotten."""
_DAYS_BY_HOUR = 7.0
"""Days of which usage is known by hour and session; before them, by day and worker."""
_MANY = 2000
_EACH = 64
"""Batches of one user that are looked at."""
_LOOK_BACK = 30.0
"""Seconds in which an attempt that ended must have become visible."""


class Dispatcher:
    """Places jobs in cycles. All that it must not forget is in Postgres.

    Args:
        housekeeper: tidies up while this one leads.
    """

    def __init__(
        self, db: Database, publisher: Publisher, housekeeper: Housekeeper | None = None
    ) -> None:
        self._own_db = db
        self._db = db
        self._publisher = publisher
        self._housekeeper = housekeeper
        self._reaper = Reaper(publisher)
        self._needs = Needs(db)
        self._accounts = Accounts()
        self._loadable: Mapping[str, frozenset[str]] = {}
        self._passed: dict[int, float] = {}
        self._placed = time.monotonic()
        self._sent: dict[str, str] = {}
        self._tidied = 0.0
        self._cleaned = 0.0

    def run(self, stop: threading.Event) -> None:
        """Lead whenever nobody else does, until ``stop`` is set."""
        while not stop.is_set():
            try:
                with leadership(self._own_db, stop) as lead:
                    if lead is not None:
                        self._lead(lead, stop)
            except Unavailable as error:
                _log.warning("not leading: %s", error)
                stop.wait(_RETRY)

    def _lead(self, lead: Leadership, stop: threading.Event) -> None:
        self._db = lead.db
        self._accounts.know(rates(self._db))
        tidying = self._housekeeper.at_work(self._db) if self._housekeeper else nullcontext()
        with forecasting(self._db), tidying:
            while not stop.is_set():
                lead.beat()
                self.cycle()
                # Several wishes that come together are served by one cycle.
                stop.wait(_PAUSE)
                lead.wait(IDLE)

    def cycle(self) -> int:
        """One round: tidy at times, place what waits, publish it. The number of jobs placed."""
        now = time.monotonic()
        if now - self._tidied > _TIDY:
            self._tidy()
            self._tidied = now
        snapshot = self._snapshot(now)
        if not snapshot.runs or not snapshot.seats:
            return 0
        found = place(snapshot)
        placed = leases.claim(self._db, found.claims)
        self._accounts.charge(placed, snapshot)
        self._pass(found, now)
        checkpoints = {run.batch_id: run.checkpoint for run in snapshot.runs}
        for lease in placed:
            self._sent[lease.session_id] = checkpoints[lease.batch_id]
        if placed:
            self._publisher.publish(placed)
        return len(placed)

    def _pass(self, found: Placed, now: float) -> None:
        """Count the seconds for which batches are passed over, until a job of theirs is placed."""
        since, self._placed = now - self._placed, now
        for batch_id in found.passed:
            self._passed[batch_id] = self._passed.get(batch_id, 0.0) + since
        for claim in found.claims:
            self._passed.pop(claim.batch_id, None)

    def _snapshot(self, now: float) -> Snapshot:
        live = sessions.live(self._db)
        self._sent = {s.id: self._sent[s.id] for s in live if s.id in self._sent}
        suspects = backlog.suspects(self._db, crashes=FATAL_CRASHES - 1)
        seats = [
            Seat(
                session_id=session.id,
                worker=session.worker,
                capacity=session.capacity,
                held=session.running + session.assigned,
                warm=frozenset([*session.resident, *filter(None, [self._sent.get(session.id)])]),
                can_load=self._loadable.get(session.host),
            )
            for session in live
            if session.takes_jobs and session.id not in suspects
        ]
        free = max((seat.capacity - seat.held for seat in seats), default=-INTERACTIVE_EXTRA)
        if free <= -INTERACTIVE_EXTRA:
            return Snapshot(seats, ())
        runs = self._waiting(now, least=0 if free > 0 else INTERACTIVE_FROM)
        users = backlog.entitled(self._db, {run.user for run in runs})
        return Snapshot(seats, runs, self._accounts.claimants(users, runs))

    def _waiting(self, now: float, *, least: int) -> list[Run]:
        """Retries and the heads of open batches of priority ``least`` and up, as each user wants
        them served."""
        retries = [
            self._run(
                retry.batch_id,
                retry.ord,
                now,
                priority=retry.priority,
                user=retry.user_id,
                retried=retry.ord,
                avoid=retry.avoid,
                alone=runs_alone(retry.crashes),
            )
            for retry in backlog.retries(self._db, least=least, limit=_MANY)
        ]
        heads = [
            self._run(
                batch.id,
                batch.cursor,
                now,
                priority=batch.priority,
                user=batch.user_id,
                total=batch.total,
            )
            for batch in backlog.open_batches(self._db, least=least, each=_EACH, limit=_MANY)
        ]
        return sorted(
            retries + heads, key=lambda run: (-run.priority, run.batch_id, run.ord is None)
        )

    def _run(
        self,
        batch_id: int,
        ord: int,
        now: float,
        *,
        priority: int,
        user: int,
        total: int = 0,
        retried: int | None = None,
        avoid: str | None = None,
        alone: bool = False,
    ) -> Run:
        """One job to retry, or those of a batch of ``total`` from ``ord`` on that are alike."""
        need = self._needs.of(batch_id, ord)
        return Run(
            batch_id=batch_id,
            checkpoint=need.checkpoint,
            priority=priority,
            count=1 if retried is not None else min(need.until, total) - ord,
            passed=self._passed.get(batch_id, 0.0),
            ord=retried,
            avoid=avoid,
            alone=alone,
            user=user,
            cost=self._accounts.costs.estimate(need.checkpoint, need.size),
            size=need.size,
            load=self._accounts.costs.load(need.checkpoint),
        )

    def _tidy(self) -> None:
        self._reaper.look(self._db)
        health.tend(self._db)
        self._loadable = assets.loadable(self._db)
        if time.monotonic() - self._cleaned > _CLEAN:
            self._cleaned = time.monotonic()
            assets.forget_hosts(self._db, days=_FORGOTTEN_DAYS)
            usage.roll_up(self._db, days=_DAYS_BY_HOUR)
        self._accounts.settle(backlog.spent(self._db, seconds=_LOOK_BACK))
        for batch_id in backlog.finish(self._db):
            self._needs.forget(batch_id)
            self._passed.pop(batch_id, None)
            _log.info("batch %s has ended", batch_id)

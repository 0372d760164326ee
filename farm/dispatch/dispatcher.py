"""The dispatcher: one leader that hands waiting jobs to sessions and tidies up after the dead."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import nullcontext

from farm.broker.queue import Publisher
from farm.db import backlog, leases
from farm.db.database import Database
from farm.db.rates import measured
from farm.dispatch import health
from farm.dispatch.accounts import Accounts
from farm.dispatch.forecaster import forecasting
from farm.dispatch.housekeeping import Housekeeper
from farm.dispatch.leadership import BEAT, Leadership, leadership
from farm.dispatch.placement import place
from farm.dispatch.reaper import Reaper
from farm.dispatch.survey import Survey
from farm.errors import Unavailable

_log = logging.getLogger(__name__)

IDLE = 1.0
"""Seconds between cycles when nobody wakes the dispatcher."""

_PAUSE = 0.02
_RETRY = 0.5
_TIDY = 1.0
_LOOK_BACK = 30.0
"""Seconds in which an attempt that ended must have become visible."""
_ALL = 60.0
"""Seconds after which all open batches are looked at for those that are at their end, and not only
those that an attempt of has ended lately."""


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
        self._accounts = Accounts()
        self._survey = Survey(db, self._accounts)
        self._decided = time.monotonic()
        self._tidied = 0.0
        self._seen_all = -math.inf

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
        self._reaper = Reaper(self._publisher)
        self._accounts.begin(measured(self._db))
        self._seen_all = -math.inf
        tidying = self._housekeeper.at_work(self._db) if self._housekeeper else nullcontext()
        with forecasting(self._db), tidying:
            beaten, changed = 0.0, True
            while not stop.is_set():
                began = time.monotonic()
                if began - beaten > BEAT:
                    lead.beat()
                    beaten = began
                placed = self.cycle(changed=changed)
                # Several wishes that come together are served by one cycle.
                stop.wait(max(0.0, began + _PAUSE - time.monotonic()))
                # Behind jobs that were placed there may be others, of another checkpoint, for the
                # places that are left.
                changed = lead.wait(0.0 if placed else IDLE)

    def cycle(self, *, changed: bool = True) -> int:
        """One round: tidy at times, place what waits, publish it. The number of jobs placed.

        Args:
            changed: something may have since the last round, beside places that became free.
        """
        now = time.monotonic()
        if now - self._tidied > _TIDY:
            self._tidy()
            self._tidied, changed = now, True
        # What is only read needs no fence, and so no transaction: what comes of it has one.
        snapshot = self._survey.look(self._own_db, changed=changed)
        if not snapshot.queues or not snapshot.seats:
            return 0
        found = place(snapshot)
        placed = leases.claim(self._db, found.claims)
        self._accounts.charge(placed, snapshot)
        self._survey.wait(found, now - self._decided)
        self._survey.note(found.claims, placed, snapshot)
        self._decided = now
        if placed:
            self._publisher.publish(placed)
        return len(placed)

    def _tidy(self) -> None:
        self._accounts.give_back(self._reaper.look(self._db))
        health.tend(self._db)
        self._survey.refresh(self._own_db)
        self._survey.set_aside(self._db)
        spent = backlog.spent(self._db, seconds=_LOOK_BACK)
        self._accounts.settle(spent)
        self._finish({attempt.batch_id for attempt in spent})

    def _finish(self, touched: set[int]) -> None:
        """Close the batches that are at their end: of those of which an attempt has ended."""
        now = time.monotonic()
        everything = now - self._seen_all > _ALL
        if everything:
            self._seen_all = now
        for batch_id in backlog.finish(self._db, among=None if everything else touched):
            self._survey.forget(batch_id)
            _log.info("batch %s has ended", batch_id)

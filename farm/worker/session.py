"""A session: one life of a worker, held by heartbeats."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from farm.db import orders, sessions
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.errors import Unavailable
from farm.worker.accountant import Accountant
from farm.worker.ledger import Ledger

_log = logging.getLogger(__name__)

BEAT = 2.0
"""Seconds between heartbeats; a lease should last at least three of them."""

_RETRY = 0.5

LOST = 75
"""Exit status of a worker whose session was ended by others: start it again."""


class Session:
    """Keeps a session alive, and hears through it what the owners of jobs want stopped.

    Args:
        lease: seconds without a heartbeat after which the session is over.
        report: gives the resident checkpoints and the statistics that go with each heartbeat.
        cancel: is told the (batch, ord, attempt) of every job to stop.
        obey: is told every (action, checkpoint) that people ordered.
        accountant: what its seconds were spent on goes with heartbeats, too.
    """

    def __init__(
        self,
        db: Database,
        new: NewSession,
        *,
        lease: float,
        report: Callable[[], tuple[Sequence[str], dict[str, Any]]],
        cancel: Callable[[tuple[int, int, int]], None],
        obey: Callable[[str, str], None],
        accountant: Accountant,
    ) -> None:
        self.id = new.id
        self.worker = new.worker
        self._db = db
        self._lease = lease
        self._report = report
        self._cancel = cancel
        self._obey = obey
        self._stop = threading.Event()
        self._ledger = Ledger(accountant, sessions.open(db, new, lease=lease))
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def drain(self) -> None:
        """Ask for no more jobs. Without Postgres nobody could send any, so failing is fine."""
        try:
            sessions.drain(self._db, self.id)
        except Unavailable as error:
            _log.warning("Postgres was not told that this worker drains: %s", error)

    def close(self) -> None:
        """End the session in good order."""
        self._stop.set()
        self._thread.join(timeout=5)
        try:
            sessions.close(self._db, self.id, spent=self._ledger.last())
        except Unavailable as error:
            _log.warning("the session's lease will have to run out: %s", error)

    def _run(self) -> None:
        pause = usual = min(BEAT, self._lease / 3)
        while not self._stop.wait(pause):
            began = time.monotonic()
            pause = _RETRY
            try:
                self._beat()
                pause = usual
            except Unavailable as error:
                _log.warning("no heartbeat: %s", error)
            except Exception:
                # Without this thread the worker would lose its jobs and never learn of it.
                _log.exception("no heartbeat")
            late = time.monotonic() - began
            if late > self._lease:
                _log.warning("a heartbeat took %.1f s", late)

    def _beat(self) -> None:
        resident, stats = self._report()
        answer = sessions.beat(
            self._db,
            self.id,
            lease=self._lease,
            resident=resident,
            stats=stats,
            spent=self._ledger.due(),
        )
        if answer is None:
            # Others have been given its jobs. Nothing it does can count any more, so it makes
            # room at once for a new session; the supervisor starts one.
            _log.error("session %s was declared dead; this process ends", self.id)
            os._exit(LOST)
        self._ledger.written(hour=answer.hour, idle_by_policy=answer.state != "live")
        for job in answer.unwanted:
            self._cancel(job)
        for action, checkpoint in orders.take(self._db, self.id):
            self._obey(action, checkpoint)

"""What a worker does for the queue, whatever makes its images: a session, and its attempts."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from farm.broker.progress import Progress
from farm.db import sessions
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.settings import Settings
from farm.spec.batch import INTERACTIVE_EXTRA
from farm.storage import ImageStore
from farm.worker.accountant import Accountant
from farm.worker.attempt import Attempts
from farm.worker.keeper import Keeper
from farm.worker.session import Session
from farm.worker.starter import Starter
from farm.worker.tasks import consume
from farm.worker.writer import Writer

if TYPE_CHECKING:
    from farm.worker.engine import Engine

_log = logging.getLogger(__name__)

Report = Callable[[], tuple[Sequence[str], dict[str, Any]]]
"""Gives the resident checkpoints, and what else a heartbeat tells of the device."""


class Service:
    """Takes a session's jobs from the queue to the engine, and its images to their rows.

    Args:
        hashes: (kind, name) of an asset to its sha256, or None while that is not known.
        obey: is told every (action, subject) that people ordered.
        accountant: the engine's.
        evidence: see :class:`farm.worker.attempt.Attempts`.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database,
        engine: Engine,
        new: NewSession,
        *,
        images: ImageStore,
        progress: Progress,
        hashes: Callable[[str, str], str | None],
        report: Report,
        obey: Callable[[str, str], None],
        accountant: Accountant,
        evidence: Callable[[float, str], str | None] = lambda *_: None,
    ) -> None:
        self._settings = settings
        self._db = db
        self._new = new
        self._report = report
        self._obey = obey
        self._accountant = accountant
        self._starter = Starter(db, new.id)
        self._writer = Writer(db, new.id, new.worker, tell=progress.tell_all)
        self._keeper = Keeper(images)
        self._attempts = Attempts(
            db,
            engine,
            profile=new.profile,
            keeper=self._keeper,
            starter=self._starter,
            writer=self._writer,
            hashes=hashes,
            accountant=accountant,
            evidence=evidence,
        )

    def work(self) -> None:
        """Consume until told to stop; what cannot be finished in time is given back."""
        self._keeper.check()
        self._session = Session(
            self._db,
            self._new,
            lease=self._settings.lease_seconds,
            report=self._tell,
            cancel=self._attempts.cancel,
            obey=self._obey,
            accountant=self._accountant,
        )
        _log.info("%s is live, profile %s", self._new.worker, self._new.profile)
        try:
            consume(
                self._settings.required("broker_url"),
                self._new.id,
                concurrency=self._new.capacity + INTERACTIVE_EXTRA,
                run=self._attempts.run,
                drain=self._begin_drain,
            )
        finally:
            self._session.close()
            self._keeper.leave()
            self._starter.stop()
            self._writer.stop()

    def settle(self, seconds: float) -> None:
        """Start nothing more, and see the images that are done already to their rows."""
        self._attempts.settle(seconds)

    def die(self, error: dict[str, str]) -> None:
        """End the session at once, as the process does; its jobs are given to others."""
        sessions.die(self._db, self._new.id, error=error)

    def _tell(self) -> tuple[Sequence[str], dict[str, Any]]:
        resident, stats = self._report()
        told = {
            "images": self._attempts.succeeded,
            "refuses": self._keeper.refusal,
            "oldest_seconds": self._attempts.oldest,
        }
        return resident, {**told, **stats}

    def _begin_drain(self) -> None:
        """Called in a signal handler, so all it does is start a thread."""
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        grace = self._settings.drain_seconds
        _log.info("draining: %.0f s for what runs", grace)
        self._attempts.drain()
        self._session.drain()
        _in(grace, self._attempts.release)
        _in(grace + 10, lambda: os._exit(1))


def _in(seconds: float, act: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True  # a worker that has nothing left to do ends at once
    timer.start()

"""The one thread of a worker that tells Postgres how attempts ended, in groups."""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from typing import TypeAlias

from farm.db import leases
from farm.db.database import Database
from farm.db.leases import Ending
from farm.errors import Unavailable

_log = logging.getLogger(__name__)

_GROUP = 64
_RETRY = 0.5

_Waiting: TypeAlias = "tuple[Ending, Future[str | None]]"


class Writer:
    """Ends attempts, as many as wait in one statement; keeps trying while Postgres is away."""

    def __init__(self, db: Database, session_id: str, worker: str) -> None:
        self._db = db
        self._session_id = session_id
        self._worker = worker
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def end(self, ending: Ending) -> str | None:
        """Wait until Postgres has taken the ending: the job's new state, or None if fenced.

        Raises:
            Unavailable: the worker stops before Postgres answered; the ending may count or not.
        """
        accepted: Future[str | None] = Future()
        self._queue.put((ending, accepted))
        return accepted.result()

    def stop(self) -> None:
        """Write what waits, then stop."""
        self._queue.put(None)
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            group = self._next_group()
            if not group:
                return
            self._write(group)

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        waiting = self._queue.get()
        while waiting is not None:
            group.append(waiting)
            if len(group) == _GROUP or self._queue.empty():
                break
            waiting = self._queue.get()
        return group

    def _write(self, group: list[_Waiting]) -> None:
        endings = [ending for ending, _ in group]
        while True:
            try:
                states = leases.end(self._db, self._session_id, self._worker, endings)
                break
            except Unavailable as error:
                _log.warning("%d results wait for Postgres: %s", len(endings), error)
                if self._stopping.wait(_RETRY):
                    _give_up(group, error)
                    return
            except Exception as error:
                _log.exception("results could not be written")
                _give_up(group, error)
                return
        for ending, accepted in group:
            accepted.set_result(states.get((ending.batch_id, ending.ord, ending.attempt)))


def _give_up(group: list[_Waiting], error: Exception) -> None:
    for _, accepted in group:
        accepted.set_exception(error)

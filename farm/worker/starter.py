"""The one thread of a worker that starts attempts, in groups."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TypeAlias

from farm.db import leases
from farm.db.database import Database
from farm.db.leases import Started
from farm.worker.crowd import Crowd

JobKey: TypeAlias = "tuple[int, int, int]"
_Waiting: TypeAlias = "tuple[JobKey, bool, Future[Started | None]]"


class Starter:
    """Starts attempts of a session, as many as wait in one statement: messages come in crowds."""

    def __init__(self, db: Database, session_id: str) -> None:
        self._db = db
        self._session_id = session_id
        self._crowd: Crowd[_Waiting] = Crowd()
        self._thread = threading.Thread(target=self._run, name="starter", daemon=True)
        self._thread.start()

    def start(self, job: JobKey, *, again: bool) -> Started | None:
        """START one; None when its message was stale or came twice.

        Args:
            again: it may have been started before by a statement whose answer was lost.

        Raises:
            Unavailable: Postgres is out of reach; it may have been started or not.
        """
        answer: Future[Started | None] = Future()
        self._crowd.add((job, again, answer))
        return answer.result()

    def stop(self) -> None:
        """Start what waits, and no more."""
        self._crowd.close()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        for group in self._crowd:
            try:
                wanted = [(job, again) for job, again, _ in group]
                started = leases.start_group(self._db, self._session_id, wanted)
            except Exception as error:
                for _, _, answer in group:
                    answer.set_exception(error)
            else:
                for job, _, answer in group:
                    # Of a message that came twice at once, one is stale.
                    answer.set_result(started.pop(job, None))

"""The one thread of a worker that tells Postgres how attempts ended, in groups."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeAlias

from farm.db import leases
from farm.db.database import Database
from farm.db.leases import Ending
from farm.errors import Unavailable
from farm.spec.moves import Move
from farm.worker.crowd import Crowd

_log = logging.getLogger(__name__)

_UNWRITABLE = "The result cannot be recorded"
_RETRY = 0.5

_Waiting: TypeAlias = "tuple[Ending, Future[str | None]]"
Tell: TypeAlias = Callable[[list[tuple[int, dict[str, Any]]]], None]


class Writer:
    """Ends attempts, as many as wait in one statement; keeps trying while Postgres is away.

    Args:
        tell: is told the batch and the event of each attempt that Postgres took.
    """

    def __init__(
        self, db: Database, session_id: str, worker: str, *, tell: Tell = lambda _: None
    ) -> None:
        self._db = db
        self._tell = tell
        self._session_id = session_id
        self._worker = worker
        self._crowd: Crowd[_Waiting] = Crowd()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def end(self, ending: Ending) -> str | None:
        """Wait until Postgres has taken the ending: the job's new state, or None if fenced.

        Raises:
            Unavailable: the worker stops before Postgres answered; the ending may count or not.
        """
        accepted: Future[str | None] = Future()
        self._crowd.add((ending, accepted))
        return accepted.result()

    def stop(self) -> None:
        """Write what waits, then stop."""
        self._crowd.close()
        self._stopping.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        for group in self._crowd:
            try:
                self._write(group)
            except Exception as error:
                # Without this thread every attempt would wait for ever, and the session live on.
                _log.exception("the writer goes on")
                _give_up(group, error)

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
                _log.exception("%d results could not be written", len(endings))
                self._write_apart(group, error)
                return
        for ending, accepted in group:
            accepted.set_result(states.get((ending.batch_id, ending.ord, ending.attempt)))
        self._tell(
            [
                (batch_id, {"job": f"{batch_id}-{ord}", "state": state})
                for (batch_id, ord, _), state in states.items()
            ]
        )

    def _write_apart(self, group: list[_Waiting], error: Exception) -> None:
        """One of them cannot be written at all: its job fails, and the others lose nothing."""
        if len(group) > 1:
            for waiting in group:
                self._write([waiting])
            return
        ending, accepted = group[0]
        if ending.error and ending.error.get("title") == _UNWRITABLE:
            _give_up(group, error)
        else:
            self._write([(_unwritable(ending, error), accepted)])


def _unwritable(ending: Ending, error: Exception) -> Ending:
    told = {
        "class": "worker",
        "title": _UNWRITABLE,
        "detail": f"Postgres does not take it: {type(error).__name__}: {error}".replace("\0", ""),
        "remedy": "Look at the job's prompt for characters that are none, and at the worker's log.",
    }
    return Ending(ending.batch_id, ending.ord, ending.attempt, Move.FAIL, error=told)


def _give_up(group: list[_Waiting], error: Exception) -> None:
    for _, accepted in group:
        if not accepted.done():
            accepted.set_exception(error)

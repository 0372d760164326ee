"""The watchdog: a step that does not end, or a device or engine that is lost, ends the process.

Nothing in the process can stop a call of the GPU that hangs. Once the process is gone its jobs
are given to others at once, with what it died of, and its supervisor starts it anew.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from farm.worker.engine.pulse import Activity
from farm.worker.session import LOST

if TYPE_CHECKING:
    from farm.worker.engine import Engine

_log = logging.getLogger(__name__)

TIMES = 10
"""How many times the longest so far an activity may take."""
LOAD_TIMES = 12
"""How many times the patience for anything else a load may take: disks are slow, and far away."""
_LOOK = 1.0
_FLUSH_SECONDS = 5.0


def overdue(doing: Activity, seconds: float, *, longest: float, patience: float) -> bool:
    """Whether an activity has gone on for longer than a healthy device takes.

    Args:
        longest: seconds that the longest of its kind took so far; 0 if there was none.
        patience: seconds it may always take, a load more. The first one compiles kernels.
    """
    if doing == "load":
        patience *= LOAD_TIMES
    return doing != "idle" and seconds > max(patience, TIMES * longest)


class Watchdog:
    """Watches an engine from a thread of its own.

    Args:
        patience: see :func:`overdue`.
        settle: called before the process ends, with seconds it may take: finished images are
            stored and recorded, the others lose their lease.
        tell: then given the error of the others; it may take as long.
        end: ends the process.
    """

    def __init__(
        self,
        *,
        patience: float,
        settle: Callable[[float], None],
        tell: Callable[[dict[str, str]], None],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._patience = patience
        self._settle = settle
        self._tell = tell
        self._end = end
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, engine: Engine) -> None:
        """Begin to watch."""
        self._thread = threading.Thread(
            target=self._run, args=(engine,), name="watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout=5)

    def lost(self, error: BaseException) -> None:
        """The device is lost: end the process; its jobs are charged with a crash."""
        _log.critical("the device is lost, this process ends: %s", error)
        self._leave(_error("worker", "Device lost", f"The device failed: {error}"))

    def _run(self, engine: Engine) -> None:
        while not self._stop.wait(min(_LOOK, self._patience / 4)):
            if why := self._fault(engine):
                _log.critical("%s; this process ends", why)
                try:
                    faulthandler.dump_traceback(sys.__stderr__ or 2)
                finally:
                    self._leave(_error("hung", "Worker hung", f"The worker hung: {why}."))
                return

    def _fault(self, engine: Engine) -> str | None:
        if engine.died:
            return "the engine's thread has ended"
        beat = engine.heartbeat()
        seconds = monotonic() - beat.since
        longest = engine.longest.get(beat.doing, 0.0)
        if overdue(beat.doing, seconds, longest=longest, patience=self._patience):
            return f"{beat.doing} has not ended for {seconds:.0f} s"
        return None

    def _leave(self, error: dict[str, str]) -> None:
        try:
            self._settle(_FLUSH_SECONDS)
        finally:  # whatever happened: alive, it would hold its jobs for ever
            # Unheard they go to others all the same, once the session's lease runs out.
            telling = threading.Thread(target=self._tell, args=(error,), daemon=True)
            telling.start()
            telling.join(_FLUSH_SECONDS)
            self._end(LOST)


def _error(failure_class: str, title: str, detail: str) -> dict[str, str]:
    remedy = "It is made again. If it happens again, look at the worker's log and its card."
    return {"class": failure_class, "title": title, "detail": detail, "remedy": remedy}

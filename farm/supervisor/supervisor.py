"""Groups of processes, kept running and stopped in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from farm.supervisor.child import CRASH_LOOP, Child, Process

_TICK = 0.1
_log = logging.getLogger(__name__)


class Supervisor:
    """Keeps groups of processes running; a later group is stopped before an earlier one.

    Args:
        logs: folder where each process's output goes, one file a name; None: where ours goes.
        held: a file descriptor that every child inherits and so keeps open.
    """

    def __init__(self, logs: Path | None, *, held: int | None = None) -> None:
        self._logs = logs
        self._lifeline = list(os.pipe())  # read end, write end
        self._inherited = self._lifeline[:1] if held is None else [self._lifeline[0], held]
        self._groups: list[list[Child]] = []
        # Not an Event: setting one in a signal handler can deadlock with a wait for it.
        self._stopping = False

    def start(self, *processes: Process) -> None:
        """Start a group."""
        if self._logs:
            self._logs.mkdir(parents=True, exist_ok=True)
        group = [Child(each, self._logs, self._inherited) for each in processes]
        self._groups.append(group)
        for child in group:
            child.start()

    def wait_ready(self, timeout: float, *, until: Callable[[], bool] = lambda: True) -> bool:
        """Keep the processes running until all are ready and ``until`` holds.

        Args:
            timeout: seconds.
        Returns:
            False if a stop was requested first.
        Raises:
            SetupError: one keeps dying or time is up; shows its last lines.
        """
        deadline = time.monotonic() + timeout
        while not self._stopping:
            for child in self._children():
                child.tick()
            late = [child for child in self._children() if not child.ready()]
            if not late and until():
                return True
            for child in late:
                if child.backoff.deaths >= CRASH_LOOP:
                    raise child.trouble("keeps dying")
            if time.monotonic() > deadline:
                raise (late or self._groups[-1])[-1].trouble(f"is not ready after {timeout:g} s")
            time.sleep(_TICK)
        return False

    def run(self) -> None:
        """Keep the processes running until a stop is requested."""
        while not self._stopping:
            for child in self._children():
                if child.tick():
                    _log.error("%s", child.trouble("keeps dying"))
            time.sleep(_TICK)

    def request_stop(self) -> None:
        """End :meth:`run` and :meth:`wait_ready`; safe in signal handlers and other threads."""
        self._stopping = True

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGHUP request a stop instead of ending us."""
        before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            before[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)
        for each in before:
            signal.signal(each, lambda *_: self.request_stop())
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def stop(self) -> None:
        """Stop the groups, last first; kill what outlives its grace. For good."""
        self.request_stop()
        while self._groups:
            group = self._groups.pop()
            for child in group:
                child.ask_to_stop()
            for child in group:
                child.wait_stopped()
        while self._lifeline:
            os.close(self._lifeline.pop())

    def _children(self) -> Iterator[Child]:
        return (child for group in self._groups for child in group)

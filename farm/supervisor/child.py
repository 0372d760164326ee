"""One supervised process through all its lives."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from farm.errors import SetupError
from farm.supervisor import lifeline

CRASH_LOOP = 3
"""Deaths in a row at which people should know."""

_MAX_LOG = 10_000_000
_log = logging.getLogger(__name__)


@dataclass
class Backoff:
    """How long to wait before a process that died is started again, in seconds.

    It doubles from ``first`` to ``limit``; a life of ``healthy`` seconds starts it anew.
    """

    first: float = 0.2
    limit: float = 10.0
    healthy: float = 30.0
    deaths: int = 0

    def delay(self, lived: float) -> float:
        """Count a death after ``lived`` seconds; the wait before the next life."""
        self.deaths = 1 if lived >= self.healthy else self.deaths + 1
        doublings = min(self.deaths - 1, 30)  # more would overflow after a night of deaths
        return min(self.first * 2.0**doublings, self.limit)


@dataclass(frozen=True)
class Process:
    """What to run.

    Attributes:
        name: names its log and its messages.
        argv, env: the command, and what is added to our own environment.
        ready: whether it serves yet; None: as soon as it runs.
        grace: seconds it has to end after SIGTERM.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    grace: float = 10.0


class Child:
    """A process as it is now: running, or dead and soon to be started again.

    Args:
        logs: folder of its log, or None.
        inherited: file descriptors it gets; the first is its lifeline.
    """

    def __init__(self, process: Process, logs: Path | None, inherited: Sequence[int]) -> None:
        self.process = process
        self.backoff = Backoff()
        self._log = logs / f"{process.name}.log" if logs else None
        self._inherited = inherited
        self._running: subprocess.Popen[bytes] | None = None
        self._began = self._due = self._ends = 0.0

    def start(self) -> None:
        self._began = time.monotonic()
        try:
            with _opened(self._log) as output:
                self._running = subprocess.Popen(
                    list(self.process.argv),
                    env={
                        **os.environ,
                        **self.process.env,
                        lifeline.VARIABLE: str(self._inherited[0]),
                    },
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=self._inherited,
                    # Ctrl-C in a terminal must reach us alone, so that we stop them in order.
                    start_new_session=True,
                )
        except OSError as error:
            self._died(str(error))

    def tick(self) -> bool:
        """Notice its death; start it again when its wait is over.

        Returns:
            whether it has now died so often in a row that people should know.
        """
        deaths = self.backoff.deaths
        if self._running is None:
            if time.monotonic() >= self._due:
                self.start()
        elif (code := self._running.poll()) is not None:
            self._running = None
            self._died(f"exit code {code}" if code >= 0 else signal.Signals(-code).name)
        return deaths < CRASH_LOOP <= self.backoff.deaths

    def ready(self) -> bool:
        return self._running is not None and (self.process.ready is None or self.process.ready())

    def ask_to_stop(self) -> None:
        self._ends = time.monotonic() + self.process.grace
        if self._running is not None:
            self._running.terminate()

    def wait_stopped(self) -> None:
        if self._running is None:
            return
        try:
            self._running.wait(max(0.0, self._ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            _log.warning("%s did not end in %g s: killed", self.process.name, self.process.grace)
        # What it started and left behind shares its group, and goes too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._running.pid, signal.SIGKILL)
        self._running.wait()
        self._running = None

    def trouble(self, what: str) -> SetupError:
        if self._log is None:
            return SetupError(f"{self.process.name} {what}.", field=self.process.name)
        return SetupError(
            f"{self.process.name} {what}. Its last lines:\n{_last_lines(self._log)}\n",
            field=self.process.name,
            remedy=f"The whole log is {self._log}.",
        )

    def _died(self, why: str) -> None:
        now = time.monotonic()
        wait = self.backoff.delay(now - self._began)
        self._due = now + wait
        _log.warning("%s ended (%s); again in %.1f s", self.process.name, why, wait)


def _opened(log: Path | None) -> contextlib.AbstractContextManager[BinaryIO | None]:
    if log is None:
        return contextlib.nullcontext()
    if log.exists() and log.stat().st_size > _MAX_LOG:
        log.replace(log.with_suffix(".log.1"))
    return log.open("ab")


def _last_lines(log: Path, count: int = 12) -> str:
    try:
        lines = log.read_bytes()[-8192:].decode(errors="replace").splitlines()
    except OSError as error:
        return f"    (no log: {error})"
    return "\n".join(f"    {line}" for line in lines[-count:])

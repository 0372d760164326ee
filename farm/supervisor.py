"""Starts processes, restarts what dies, stops them in order, and leaves none behind.

Every child holds the read end of a pipe whose write end only the supervisor holds: its
lifeline. However the supervisor ends, ``kill -9`` included, the pipe closes and
:func:`watch_lifeline` ends the child.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from farm.errors import SetupError

_LIFELINE = "FARM_LIFELINE"
_MAX_LOG = 10_000_000
_TICK = 0.1
_CRASH_LOOP = 3

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
        self._groups: list[list[_Child]] = []
        # Not an Event: setting one in a signal handler can deadlock with a wait for it.
        self._stopping = False

    def start(self, *processes: Process) -> None:
        """Start a group."""
        if self._logs:
            self._logs.mkdir(parents=True, exist_ok=True)
        group = [_Child(each, self._logs, self._inherited) for each in processes]
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
            late = [child for child in self._tick() if not child.ready()]
            if not late and until():
                return True
            for child in late:
                if child.backoff.deaths >= _CRASH_LOOP:
                    raise child.trouble("keeps dying")
            if time.monotonic() > deadline:
                raise (late or self._groups[-1])[-1].trouble(f"is not ready after {timeout:g} s")
            time.sleep(_TICK)
        return False

    def run(self) -> None:
        """Keep the processes running until a stop is requested."""
        while not self._stopping:
            self._tick()
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

    def _tick(self) -> list[_Child]:
        children = [child for group in self._groups for child in group]
        for child in children:
            child.tick()
        return children


class _Child:
    """One process through all its lives."""

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
                    env={**os.environ, **self.process.env, _LIFELINE: str(self._inherited[0])},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=self._inherited,
                    # Ctrl-C in a terminal must reach us alone, so that we stop them in order.
                    start_new_session=True,
                )
        except OSError as error:
            self._died(str(error))

    def tick(self) -> None:
        """Notice its death; start it again when its wait is over."""
        if self._running is None:
            if time.monotonic() >= self._due:
                self.start()
        elif (code := self._running.poll()) is not None:
            self._running = None
            self._died(f"exit code {code}" if code >= 0 else signal.Signals(-code).name)

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
        if self.backoff.deaths == _CRASH_LOOP:
            _log.error("%s", self.trouble(f"keeps dying ({why})"))


def watch_lifeline(grace: float = 10.0) -> None:
    """In a child: when the supervisor is gone, end by SIGTERM, and after ``grace`` s at once.

    Does nothing in a process that no supervisor started.
    """
    # Taken out, because our own children do not inherit the pipe.
    lifeline = os.environ.pop(_LIFELINE, None)
    if lifeline is None:
        return

    def watch(pipe: int) -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, args=(int(lifeline),), name="lifeline", daemon=True).start()


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

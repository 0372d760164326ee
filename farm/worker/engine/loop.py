"""The one thread that has the device: it takes turns, and hears others between them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import TypeAlias, TypeVar

import torch

from farm.errors import Unavailable
from farm.worker.engine.core import Core
from farm.worker.engine.failures import DeviceLost, device_lost

log = logging.getLogger(__name__)

T = TypeVar("T")

OnLost: TypeAlias = Callable[[BaseException], None]


class Loop:
    """Turns of a core, one after the other, until it is told to end.

    Args:
        on_lost: called on the thread when the device is of no more use.
        closed: called then before jobs are answered; afterwards nobody asks for more.
    """

    def __init__(
        self, core: Core, device: torch.device, *, on_lost: OnLost, closed: Callable[[], None]
    ) -> None:
        self._core = core
        self._device = device
        self.on_lost = on_lost
        self._closed = closed
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._deadline: float | None = None
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    @property
    def begun(self) -> bool:
        """Whether the thread was started."""
        return self._thread.ident is not None

    @property
    def alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, with what was asked for before too."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for its end, at most so many seconds."""
        self._thread.join(timeout)

    def ask(self, work: Callable[[], None]) -> None:
        """Have this done between two turns."""
        self._inbox.put(work)

    def end(self, deadline: float) -> None:
        """Go on for as long as there are jobs, until that time on the monotonic clock at most."""
        self.ask(partial(setattr, self, "_deadline", deadline))

    def between(self, work: Callable[[], T]) -> T:
        """What ``work`` makes on the engine's thread, between two turns.

        Raises:
            Unavailable: the thread has ended.
        """
        made: Future[T] = Future()

        def do() -> None:
            began = monotonic()
            try:
                # As patiently watched as a load, which it may begin with.
                with self._core.pulse.doing("load", why="calibration"):
                    made.set_result(work())
            except Exception as error:
                made.set_exception(error)
                if device_lost(error):
                    raise
            finally:
                self._core.pulse.accountant.work("denoise", {"": monotonic() - began})

        self.ask(do)
        while not wait([made], timeout=1.0).done:
            if not self.alive:
                raise Unavailable("The engine was stopped.", remedy="Ask another worker.")
        return made.result()

    def _run(self) -> None:
        if self._device.type == "cpu":
            torch.set_num_threads(threads())
        try:
            while self._go_on():
                pass
            leaving = Unavailable(
                "The engine was stopped before the image was done.",
                remedy="Send the job elsewhere.",
            )
            self._core.jobs.fail(list(self._core.jobs), leaving)
            self._core.rest()
        except DeviceLost as error:
            self._lose(error)

    def _go_on(self) -> bool:
        """One turn; False when it is time to end.

        Raises:
            DeviceLost: no turn will do any good.
        """
        try:
            if not self._listen():
                return False
            with self._core.pulse.turning():
                self._core.turn()
        except Exception as error:  # a defect of the engine itself: nobody's job is sound
            if device_lost(error):
                raise DeviceLost(str(error)) from error
            log.exception("the engine failed; all its jobs end")
            self._core.jobs.fail(list(self._core.jobs), error)
        return True

    def _lose(self, error: DeviceLost) -> None:
        log.critical("the device is lost: %s", error)
        self.on_lost(error)
        self._closed()
        # Whoever asked meanwhile waits for an answer too.
        with suppress(Empty):
            while True:
                heard = self._inbox.get_nowait()
                with suppress(Exception, DeviceLost):
                    heard()
        lost = Unavailable(f"The device failed: {error}", remedy="Send the job elsewhere.")
        self._core.jobs.fail(list(self._core.jobs), lost)

    def _listen(self) -> bool:
        """Hear everything that was asked for, waiting while there is nothing to do.

        Returns:
            Whether to go on.
        """
        while True:
            idle = not self._core.jobs and self._deadline is None
            if idle:
                self._core.rest()
            try:
                heard = self._inbox.get(block=idle)
            except Empty:
                break
            self._core.pulse.accountant.wake()
            heard()
        return self._deadline is None or (bool(self._core.jobs) and monotonic() < self._deadline)


def threads() -> int:
    """How many threads torch gets on a CPU: all cores but one, or fewer where it is told so.

    They wait for each other by spinning. While another process needs their core that is up to
    nine times slower, so one core is left to the servers and to the encoding of pictures.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(torch.get_num_threads(), (cores or 1) - 1))

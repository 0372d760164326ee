"""Models that enlarge pictures, read while the device goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from time import monotonic

from farm.errors import Unavailable
from farm.worker.memory.exhaustion import on_host
from farm.worker.models.upscaler import Upscaler

PATIENCE = 600.0
"""Seconds for which jobs wait for a file. Nothing can stop a read that a disk does not answer."""


class Reading:
    """A model that is being read, or was.

    Args:
        read: reads it.
    """

    def __init__(self, name: str, read: Callable[[str], Upscaler]) -> None:
        self._name = name
        self._read = read
        self._began = monotonic()
        self.future: Future[Upscaler] = Future()
        Thread(target=self._run, name="upscaler", daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for any more."""
        return self.future.done() or monotonic() - self._began > PATIENCE

    def result(self) -> Upscaler:
        """The model, once it is :attr:`over`.

        Raises:
            UpscalerError: there is none, or it is unusable.
            HostExhausted: the host has no memory for it.
            Unavailable: it takes too long.
        """
        if self.future.done():
            return self.future.result()
        raise Unavailable(
            f"The upscaler {self._name} could not be read within {PATIENCE:.0f} s.",
            remedy="See whether the disk that it lies on answers.",
        )

    def _run(self) -> None:
        try:
            with on_host("an upscaler"):
                self.future.set_result(self._read(self._name))
        except BaseException as error:  # whatever it is, its jobs hear of it
            self.future.set_exception(error)


class Readings:
    """Reads each model once for all who wait for it, on a thread of its own: a disk that does not
    answer holds up nobody else."""

    def __init__(self, read: Callable[[str], Upscaler]) -> None:
        self._read = read
        self._under_way: dict[str, Reading] = {}

    def of(self, name: str) -> Reading:
        """The model of this name, on its way."""
        self._under_way = {
            other: one for other, one in self._under_way.items() if not one.future.done()
        }
        if name not in self._under_way:
            self._under_way[name] = Reading(name, self._read)
        return self._under_way[name]

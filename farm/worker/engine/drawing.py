"""Noise for the steps of an image, drawn while the device is at work on earlier ones."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from torch import Tensor

from farm.worker.memory.exhaustion import on_host, out_of_memory
from farm.worker.samplers import Draw
from farm.worker.samplers.noise import ImageNoise

AHEAD = 2
"""Noises of an image that are there before they are needed, if threads keep up."""
CHUNK, CHUNK_BYTES = 8, 256 * 2**10
"""Noises that are drawn together at most, and how large they may be; but one at least. Small ones
take no time to speak of, and every hand-over takes some."""

Chunk = Sequence[tuple[int, Draw]]
"""Steps, and what each of them draws."""
Drawn = tuple[dict[int, Tensor], BaseException | None]
"""The noises of a chunk's first steps, and what went wrong with the next."""

_threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="noise")
"""torch draws without Python's lock; more threads than cores would only hand it to and fro."""


class Drawing:
    """What the steps of one image draw, one step after the other.

    Call it from one thread at a time; others draw, never two of them for one image. It holds at
    most as many noises as it keeps ahead and draws together.

    Args:
        noise: of the image, that nobody else draws from meanwhile.
        wanted: by each step.
        size: bytes of one noise.
    """

    def __init__(self, noise: ImageNoise, wanted: Sequence[Draw | None], size: int) -> None:
        self._noise = noise
        self._left = [(place, draw) for place, draw in enumerate(wanted) if draw][::-1]
        self._most = max(1, min(CHUNK, CHUNK_BYTES // size))
        self._drawn: dict[int, Tensor] = {}
        self._chunk: Chunk = ()
        self._coming: Future[Drawn] | None = None
        # The first step waits for this, so it is one alone.
        self._begin(1)

    def at(self, place: int) -> Tensor:
        """The noise of a step that draws some, counted from 0; the same whenever it is asked.

        Raises:
            HostExhausted: there was no memory for it; asked again it is drawn again.
            Exception: whatever else went wrong when it was drawn, however often it is asked.
        """
        while place not in self._drawn:
            if self._coming is None:
                self._begin(1)
            self._receive()
        return self._drawn[place]

    def passed(self, place: int) -> None:
        """A step has been taken, and its noise is not asked for any more."""
        self._drawn.pop(place, None)
        if self._coming and self._coming.done() and self._coming.result()[1] is None:
            self._receive()
        missing = AHEAD - len(self._drawn)
        if self._coming is None and missing > 0:
            self._begin(max(self._most, missing))

    def _begin(self, count: int) -> None:
        """Have some more drawn."""
        if not self._left:
            return
        self._chunk = [self._left.pop() for _ in range(min(count, len(self._left)))]
        self._coming = Future()
        work = partial(_draw, self._noise, self._chunk, self._coming, iter([True]))
        try:
            _threads.submit(work)
        except RuntimeError:
            # The process ends and nobody takes work any more, or there may be no more threads.
            work()

    def _receive(self) -> None:
        assert self._coming
        drawn, error = self._coming.result()
        self._drawn |= drawn
        if error is None:
            self._coming = None
            return
        if out_of_memory(error):
            # What was not drawn has taken nothing from its generator yet.
            self._left += [each for each in self._chunk if each[0] not in drawn][::-1]
            self._coming = None
            traceback.clear_frames(error.__traceback__)
        with on_host("the noise of an image"):
            raise error


def _draw(noise: ImageNoise, chunk: Chunk, drawn: Future[Drawn], turn: Iterator[bool]) -> None:
    """Draw a chunk, unless somebody else has begun it: work that was refused may still be done."""
    if not next(turn, False):
        return
    made: dict[int, Tensor] = {}
    failure = None
    try:
        for place, wanted in chunk:
            made[place] = noise.draw(wanted)
    except BaseException as error:
        failure = error
    drawn.set_result((made, failure))

"""Latents on their way to pixels while the next steps run."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import torch
from torch import Tensor

from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.passages import PictureLimits
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.relief import relieved
from farm.worker.engine.requests import Decode
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.engine.transfer import download
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.decoder import FACTOR, Draft

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Queued:
    """A decoding that the device has been given, and all that it still uses there.

    Nothing of it may be let go of before the device has passed its end: on a stream of its own
    nobody else would wait for that before using the memory again.
    """

    draft: Draft
    pixels: Tensor
    finite: Tensor
    watch: Stopwatch
    beside: bool


@dataclass(frozen=True)
class _Decoding:
    """Whose decoding it is. ``held`` keeps the checkpoint resident."""

    job: Job
    latent: Tensor
    checkpoint: Checkpoint
    queued: _Queued
    began: float
    held: ExitStack


class Decodes:
    """Decodes one latent at a time. Others wait their turn, as memory is planned for one.

    The host queues the work, goes on with the next steps, and books the picture in a later turn,
    when it is home. On a GPU with memory for both the device does so too: the decoding has a stream
    of its own. Where memory ran out all the same, it has none from then on.

    Args:
        limits: learns what decodings take.
        room_beside: whether memory allows to decode the latent of a job while others are
            denoised.
    """

    def __init__(
        self,
        jobs: Jobs,
        models: ModelCache,
        pulse: Pulse,
        *,
        limits: PictureLimits,
        device: torch.device,
        room_beside: Callable[[Job], bool],
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._pulse = pulse
        self._limits = limits
        self._device = device
        self._room_beside = room_beside
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._current: _Decoding | None = None

    @property
    def busy(self) -> bool:
        """Whether one is under way, so that the next has to wait."""
        return self._current is not None

    def start(self, job: Job) -> None:
        """Queue the decoding that a job waits for."""
        request, began = job.request, monotonic()
        assert isinstance(request, Decode)
        assert self._current is None
        with self._jobs.blame([job]), self._pulse.doing("decode", job=job.key), ExitStack() as held:
            checkpoint = held.enter_context(self._models.use(request.checkpoint))
            latent = request.latent.value
            try:
                beside = self._side is not None and self._room_beside(job)
                queued = self._queue(job, checkpoint, latent, beside=beside)
            except Exception:
                self._charge(job, checkpoint, monotonic() - began)
                raise
            self._current = _Decoding(job, latent, checkpoint, queued, began, held.pop_all())

    def book(self) -> None:
        """Send its job on if the picture is home. Waits for nothing."""
        if self._current:
            with self._jobs.blame([self._current.job]):
                if self._current.queued.watch.passed:
                    self._finish()

    def settle(self) -> None:
        """Wait for the picture, and send its job on."""
        if self._current is None:
            return
        job, watch = self._current.job, self._current.queued.watch
        with self._jobs.blame([job]):
            if not watch.passed:
                with self._pulse.doing("decode", job=job.key):
                    watch.seconds()
        self._finish()

    def give_way(self) -> bool:
        """Memory ran out beside a decoding: from now on decode between steps; or else beside
        guests, which leave.

        Returns:
            Whether that may help.
        """
        if self._current is None or not self._current.queued.beside:
            return self._models.dismiss()
        log.warning("memory ran out beside a decoding; from now on there is none beside steps")
        self._side = None
        self.settle()
        return True

    def _finish(self) -> None:
        assert self._current
        current, self._current = self._current, None
        job, queued = current.job, current.queued
        with current.held, self._jobs.blame([job]):
            if queued.beside:
                self._pulse.timeline.add(
                    "beside", "decode", current.began, monotonic(), job=job.key
                )
            seconds = queued.watch.seconds()
            self._charge(job, current.checkpoint, seconds)
            if not queued.beside:
                pixels = current.latent[0].numel() * FACTOR**2
                strict = job.spec.strict
                self._limits.decoded(current.checkpoint, pixels, seconds, strict=strict)
            if job in self._jobs:
                self._jobs.send(job, queued.pixels if bool(queued.finite) else self._again(current))

    def _again(self, current: _Decoding) -> Tensor:
        """In a higher precision, and the host waits for it; it is seldom."""
        began = monotonic()

        def decoded(last: bool) -> Tensor:
            draft = current.queued.draft
            return current.checkpoint.decode(current.latent, after=draft, whole=not last)

        try:
            with self._pulse.doing("decode", job=current.job.key):
                return self._with_room(decoded)
        finally:
            self._charge(current.job, current.checkpoint, monotonic() - began)

    def _charge(self, job: Job, checkpoint: Checkpoint, seconds: float) -> None:
        self._pulse.worked("decode", {job.key: seconds}, checkpoint.name)
        job.ledger.charge("decode", seconds, share=seconds)

    def _queue(self, job: Job, checkpoint: Checkpoint, latent: Tensor, *, beside: bool) -> _Queued:
        """Beside the steps, or where memory runs out between them."""
        if beside and self._side:
            try:
                with _on(self._side):
                    return self._drafted(job, checkpoint, latent, beside=True)
            except Exception as error:
                _forgive(error, "decode beside steps, from now on between")
                self._side = None
        return self._with_room(
            lambda last: self._drafted(job, checkpoint, latent, beside=False, last=last)
        )

    def _with_room(self, work: Callable[[bool], T]) -> T:
        """Whole, if need be without recorded forwards; or else in tiles, if need be without
        checkpoints that nobody uses. ``work`` is told whether it is the last try, in which tiles
        are allowed.

        Tiles show, and are remembered, so what only makes forwards quicker goes before. A picture
        that runs out of memory whole does so later too, as nothing is recorded any more.
        """
        try:
            return work(False)
        except Exception as error:
            _forgive(error, "decode, from now on nothing is recorded")
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self._models.dismiss()
        self._models.give_up_speed()
        return relieved(self._models, lambda: work(True))

    def _drafted(
        self, job: Job, checkpoint: Checkpoint, latent: Tensor, *, beside: bool, last: bool = True
    ) -> _Queued:
        """Queue a decoding; where it is the ``last`` try between steps, in tiles if need be."""
        watch = Stopwatch(self._device)
        pixels, strict = latent[0].numel() * FACTOR**2, job.spec.strict
        with self._limits.decoding(checkpoint, pixels, strict=strict):
            draft = checkpoint.draft(latent, whole=beside or not last, strict=strict)
        shown, finite = download(draft.pixels), download(draft.finite)
        watch.stop()
        return _Queued(draft, shown, finite, watch, beside)


def _forgive(error: Exception, what: str) -> None:
    """Let go of what a try held that ran out of memory; all else is raised."""
    if not out_of_memory(error):
        raise error
    traceback.clear_frames(error.__traceback__)
    log.warning("no memory to %s: %r", what, error)


@contextmanager
def _on(side: torch.cuda.Stream) -> Iterator[None]:
    """In the block work is queued beside the steps, behind those that made its input."""
    main = torch.cuda.current_stream(side.device)
    side.wait_stream(main)
    try:
        with torch.cuda.stream(side):
            yield
    except BaseException:
        # What was queued may still read memory that is let go of on the way out.
        main.wait_stream(side)
        raise

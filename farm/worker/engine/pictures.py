"""Pictures on their way back to latents."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.passages import PictureLimits
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.relief import made_room, relieved
from farm.worker.engine.requests import EncodeImage, Resize
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.memory.exhaustion import HostExhausted, on_host
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.resizing import resize_picture

_resizing = ThreadPoolExecutor(2, thread_name_prefix="resize")


class Pictures:
    """Resizes pictures on the host while the device goes on, and encodes them between two steps.

    Whether a latent is finite decides in which precision it is made, so that the host waits for
    each; nothing else could be done with it before.
    """

    def __init__(
        self,
        jobs: Jobs,
        models: ModelCache,
        pulse: Pulse,
        *,
        limits: PictureLimits,
        device: torch.device,
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._pulse = pulse
        self._limits = limits
        self._device = device
        self._resized: dict[Job, Future[Tensor]] = {}

    def book(self) -> None:
        """Send on the jobs whose picture is resized, and begin those of others. Waits for
        nothing."""
        for job, resized in list(self._resized.items()):
            if resized.done():
                self._send(job)
        for job in self._jobs:
            request = job.request
            if isinstance(request, Resize) and job.aside and job not in self._resized:
                self._resized[job] = _resizing.submit(_enlarged, request)

    def settle(self) -> None:
        """Wait for one picture, and send its job on."""
        if self._resized:
            self._send(next(iter(self._resized)))

    def encode(self, request: EncodeImage, checkpoint: Checkpoint, job: Job) -> None:
        """Encode the picture of a job; raises what the device raises."""
        with self._pulse.doing("encode", jobs=[job.key]):
            watch = Stopwatch(self._device)
            try:
                latent = relieved(self._models, lambda: self._encoded(checkpoint, request, job))
            finally:
                watch.stop()
                seconds = watch.seconds()
                self._pulse.worked("encode", {job.key: seconds}, request.checkpoint)
                job.ledger.charge("encode", seconds, share=seconds)
        pixels, strict = request.picture.value[..., 0].numel(), job.spec.strict
        self._limits.encoded(checkpoint, pixels, seconds, strict=strict)
        self._jobs.send(job, latent)

    def _encoded(self, checkpoint: Checkpoint, request: EncodeImage, job: Job) -> Tensor:
        picture, strict = request.picture.value, job.spec.strict
        with self._limits.encoding(checkpoint, picture[..., 0].numel(), strict=strict):
            return checkpoint.encode_picture(picture, strict=strict)

    def _send(self, job: Job) -> None:
        resized = self._resized.pop(job)
        if job not in self._jobs:
            return
        error = resized.exception()
        if isinstance(error, HostExhausted) and made_room(self._models, error):
            return  # the next turn begins it anew
        with self._jobs.blame([job]):
            self._jobs.send(job, resized.result())


def _enlarged(request: Resize) -> Tensor:
    picture, upscaler = request.source.value, request.upscaler
    with on_host("a larger picture"):
        return resize_picture(picture, request.width, request.height, upscaler)

"""Decide, run, record: everything that is under way on one device. Knows no threads."""

from __future__ import annotations

from time import monotonic, perf_counter

import torch

from farm.worker.engine.batcher import Batcher, Decode, Encode, Forward, Load
from farm.worker.engine.denoiser import Denoiser, Progress
from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.limits import RowLimits
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.requests import Decode as DecodeRequest
from farm.worker.engine.requests import EncodeText
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.engine.texts import TextCache
from farm.worker.memory.meter import Meter
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache


class Core:
    """Turns jobs into images, one decision at a time.

    Args:
        on_progress: called with (key, steps done, steps), a few times a second for each job.
        text_cache_bytes: device memory for encoded texts.
    """

    def __init__(
        self,
        models: ModelCache,
        profile: MemoryProfile,
        device: torch.device,
        *,
        on_progress: Progress | None = None,
        text_cache_bytes: int = 64 * 2**20,
    ) -> None:
        self._models = models
        self._device = device
        self._texts = TextCache(text_cache_bytes)
        self.jobs = Jobs(self._texts, Meter(device))
        self.pulse = Pulse()
        limits = RowLimits(models, profile)
        self._batcher = Batcher(limits.allowed, profile.buckets)
        self._denoiser = Denoiser(
            self.jobs, limits, self.pulse, device=device, on_progress=on_progress
        )

    def turn(self) -> None:
        """Do the one thing that is best done next."""
        waiting = [job.waiting for job in self.jobs]
        decision = self._batcher.decide(waiting, self._models.resident, monotonic())
        with torch.no_grad():
            match decision:
                case Load():
                    self._load(decision.checkpoint)
                case Encode():
                    self._encode(self.jobs[decision.order])
                case Decode():
                    self._decode(self.jobs[decision.order])
                case Forward():
                    self._forward(decision)

    def rest(self) -> None:
        """Let go of what is kept between steps, as there is nothing to do."""
        self._denoiser.rest()

    def _load(self, checkpoint: str) -> None:
        """Load for all who wait for this checkpoint; if it fails, it fails for all of them."""
        jobs = [job for job in self.jobs if job.waiting.checkpoint == checkpoint]
        self._denoiser.book()
        with self.pulse.doing("load"), self.jobs.blame(jobs):
            began = perf_counter()
            self._models.get(checkpoint)
            seconds = perf_counter() - began
            self.pulse.worked(seconds)
            for job in jobs:
                job.ledger.load_seconds += seconds
                job.ledger.gpu_seconds += seconds / len(jobs)

    def _encode(self, job: Job) -> None:
        """Encode a text once for all who wait for it."""
        request = job.request
        assert isinstance(request, EncodeText)
        jobs = [other for other in self.jobs if other.request == request]
        with self.pulse.doing("encode"), self.jobs.blame(jobs):
            watch = Stopwatch(self._device)
            with self._models.use(request.checkpoint) as checkpoint:
                text = checkpoint.encode(request.text, negative=request.negative)
            watch.stop()
            self._texts.put(request, text)
            seconds = watch.seconds()
            self.pulse.worked(seconds)
            for each in jobs:
                each.ledger.encode_seconds += seconds
                each.ledger.gpu_seconds += seconds / len(jobs)
                self.jobs.send(each, text)

    def _decode(self, job: Job) -> None:
        request = job.request
        assert isinstance(request, DecodeRequest)
        with self.pulse.doing("decode"), self.jobs.blame([job]):
            began = perf_counter()
            with self._models.use(request.checkpoint) as checkpoint:
                image = checkpoint.decode(request.latent.value)
            seconds = perf_counter() - began
            self.pulse.worked(seconds)
            job.ledger.decode_seconds += seconds
            job.ledger.gpu_seconds += seconds
            self.jobs.send(job, image)

    def _forward(self, forward: Forward) -> None:
        with (
            self.pulse.doing("denoise"),
            self.jobs.blame(self.jobs.present(forward.orders)),
            self._models.use(forward.checkpoint) as checkpoint,
        ):
            self._denoiser.forward(forward, checkpoint)

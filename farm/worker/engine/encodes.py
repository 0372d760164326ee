"""Texts that jobs wait for: each is encoded once for all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.relief import relieved
from farm.worker.engine.requests import EncodeText
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.engine.texts import TextCache
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.embeddings import EmbeddingShelf


class Encodes:
    """Encodes texts, and sends their jobs on at once: what they do next is queued behind it. The
    time it took is booked when the device has passed it."""

    def __init__(
        self,
        jobs: Jobs,
        models: ModelCache,
        pulse: Pulse,
        *,
        texts: TextCache,
        embeddings: EmbeddingShelf,
        device: torch.device,
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._pulse = pulse
        self._texts = texts
        self._embeddings = embeddings
        self._device = device
        self._queued: deque[tuple[Stopwatch, Sequence[Job], str]] = deque()

    def encode(self, request: EncodeText, checkpoint: Checkpoint, jobs: Sequence[Job]) -> None:
        """Encode a text for these jobs; raises what the device raises."""
        with self._pulse.doing("encode", jobs=[job.key for job in jobs]):
            watch = Stopwatch(self._device)
            text = relieved(
                self._models,
                lambda: checkpoint.encode(
                    *request.texts,
                    negative=request.negative,
                    reading=request.reading,
                    embeddings=self._embeddings,
                ),
            )
            watch.stop()
        self._texts.put(request, text)
        self._queued.append((watch, jobs, request.checkpoint))
        for job in jobs:
            self._jobs.send(job, text)

    def book(self) -> None:
        """Charge the jobs for what the device is done with. Waits for nothing."""
        while self._queued:
            watch, jobs, _ = self._queued[0]
            with self._jobs.blame(jobs):
                if not watch.passed:
                    return
            self._charge(*self._queued.popleft())

    def settle(self) -> None:
        """Wait for the device, and charge all jobs."""
        while self._queued:
            self._charge(*self._queued.popleft())

    def _charge(self, watch: Stopwatch, jobs: Sequence[Job], checkpoint: str) -> None:
        with self._jobs.blame(jobs):
            seconds = watch.seconds()
            share = seconds / len(jobs)
            self._pulse.worked("encode", {job.key: share for job in jobs}, checkpoint)
            for job in jobs:
                job.ledger.charge("encode", seconds, share=share)

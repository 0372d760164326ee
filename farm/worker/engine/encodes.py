"""Texts that jobs wait for: each is encoded once for all of them, and several together."""

from __future__ import annotations

import logging
import traceback
from collections import deque
from collections.abc import Sequence
from functools import partial

import torch

from farm.worker.engine.failures import device_lost
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
from farm.worker.models.text import AT_ONCE, TextEncoding, Words

log = logging.getLogger(__name__)


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

    def along(self, request: EncodeText) -> list[EncodeText]:
        """A text, and those that other jobs wait for and that can be encoded with it: the model's
        weights are read once for all of them."""
        waiting = (job.request for job in self._jobs.active)
        texts = [each for each in waiting if isinstance(each, EncodeText) and each.along(request)]
        return list(dict.fromkeys([request, *texts]))[:AT_ONCE]

    def waiting(self, requests: Sequence[EncodeText]) -> list[Job]:
        """The jobs that wait for these."""
        return [job for job in self._jobs if job.request in requests]

    def encode(self, requests: Sequence[EncodeText], checkpoint: Checkpoint) -> None:
        """Encode texts that go along with each other for all who wait for them. What goes wrong
        with several is tried again with each, so that it ends nobody else's job; with a single
        one it is raised."""
        jobs = self.waiting(requests)
        work = partial(self._made, requests, checkpoint)
        try:
            with self._pulse.doing("encode", jobs=[job.key for job in jobs]):
                watch = Stopwatch(self._device)
                made = work() if len(requests) > 1 else relieved(self._models, work)
                watch.stop()
        except Exception as error:
            if len(requests) == 1 or device_lost(error):
                raise
            traceback.clear_frames(error.__traceback__)
            log.info("%d texts are encoded one by one: %r", len(requests), error)
            self._one_by_one(requests, checkpoint)
            return
        self._queued.append((watch, jobs, requests[0].checkpoint))
        for request, text in zip(requests, made, strict=True):
            self._texts.put(request, text)
            for job in self.waiting([request]):
                self._jobs.send(job, text)

    def _made(self, requests: Sequence[EncodeText], checkpoint: Checkpoint) -> list[TextEncoding]:
        prompts = [Words(each.texts, each.negative) for each in requests]
        reading = requests[0].reading
        return checkpoint.encode_together(prompts, reading=reading, embeddings=self._embeddings)

    def _one_by_one(self, requests: Sequence[EncodeText], checkpoint: Checkpoint) -> None:
        for request in requests:
            with self._jobs.blame(self.waiting([request])):
                self.encode([request], checkpoint)

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

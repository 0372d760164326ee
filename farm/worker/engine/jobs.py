"""The jobs under way: every way in, on and out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from farm.errors import Cancelled, FarmError
from farm.worker.engine.failures import DeviceLost, device_lost, explained
from farm.worker.engine.job import Job
from farm.worker.engine.requests import EncodeText
from farm.worker.engine.stats import Rendered
from farm.worker.engine.texts import TextCache
from farm.worker.memory.meter import Meter

log = logging.getLogger(__name__)


class Jobs:
    """All jobs of one engine, the oldest first."""

    def __init__(self, texts: TextCache, meter: Meter) -> None:
        self._texts = texts
        self._meter = meter
        self._jobs: dict[int, Job] = {}

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs.values()))

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job: Job) -> bool:
        return job.order in self._jobs

    def __getitem__(self, order: int) -> Job:
        return self._jobs[order]

    def present(self, orders: Iterable[int]) -> list[Job]:
        """The jobs of these orders that are still here."""
        return [self._jobs[order] for order in orders if order in self._jobs]

    def add(self, job: Job) -> None:
        """Take in a job younger than all others."""
        self._jobs[job.order] = job
        with self.blame([job]):
            self._use_known_texts(job)

    def send(self, job: Job, value: Any) -> None:
        """Hand a job what it waited for; with its image it leaves."""
        with self.blame([job]):
            job.send(value)
            self._use_known_texts(job)
            if job.image is not None:
                self._finish(job)

    def fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """End jobs with an error; those that have left already stay as they ended."""
        for job in jobs:
            if self._jobs.pop(job.order, None):
                job.future.set_exception(explained(error, job))

    def cancel(self, key: str) -> None:
        """End the job called ``key`` if it is here."""
        cancelled = [job for job in self if job.key == key]
        self.fail(cancelled, Cancelled(f"Job {key!r} was cancelled."))

    @contextmanager
    def blame(self, jobs: Sequence[Job]) -> Iterator[None]:
        """An exception in the block ends these jobs, and nothing else.

        Raises:
            DeviceLost: it was the device's, so that all jobs are lost.
        """
        try:
            yield
        except FarmError as error:
            self.fail(jobs, error)
        except Exception as error:
            if device_lost(error):
                raise DeviceLost(str(error)) from error
            log.exception("%s failed", ", ".join(job.key for job in jobs))
            self.fail(jobs, error)

    def _use_known_texts(self, job: Job) -> None:
        while isinstance(job.request, EncodeText):
            text = self._texts.get(job.request)
            if text is None:
                return
            job.send(text)

    def _finish(self, job: Job) -> None:
        assert job.image is not None
        reading = self._meter.sample()
        self._meter.reset()
        for present in self:
            present.ledger.saw(reading)
        image = job.image.numpy()
        del self._jobs[job.order]
        job.future.set_result(Rendered(image, job.ledger.close()))

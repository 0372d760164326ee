"""The jobs under way: every way in, on and out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from farm.errors import Cancelled, FarmError
from farm.spec.job import JobSpec
from farm.worker.engine.failures import DeviceLost, device_lost, explained
from farm.worker.engine.job import Job
from farm.worker.engine.relief import Shedding, relieved
from farm.worker.engine.requests import Crop, EncodeText, Resize
from farm.worker.engine.shared import Shared
from farm.worker.engine.slot import Slot
from farm.worker.engine.stats import Rendered
from farm.worker.engine.texts import TextCache
from farm.worker.memory.meter import Meter
from farm.worker.models.resizing import resize_latent

log = logging.getLogger(__name__)


class Jobs:
    """All jobs of one engine, the oldest first.

    Args:
        models: what makes room where memory runs out for what is answered at once.
        check: raises for a job that cannot be made, before anything is made of it.
    """

    def __init__(
        self,
        texts: TextCache,
        shared: Shared,
        meter: Meter,
        *,
        models: Shedding,
        check: Callable[[JobSpec], None] = lambda _: None,
    ) -> None:
        self._texts = texts
        self._check = check
        self._models = models
        self._shared = shared
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

    @property
    def active(self) -> list[Job]:
        """Those that the device can do something for."""
        return [job for job in self._jobs.values() if job.leads and not job.aside]

    def together(self, job: Job) -> list[Job]:
        """A job, and those that get what it waits for."""
        return self._shared.together(job)

    def holder(self, slot: Slot) -> Job | None:
        """The job whose place this is."""
        return next((job for job in self._jobs.values() if job.slot is slot), None)

    def present(self, orders: Iterable[int]) -> list[Job]:
        """The jobs of these orders that are still here."""
        return [self._jobs[order] for order in orders if order in self._jobs]

    def add(self, job: Job) -> None:
        """Take in a job younger than all others."""
        self._jobs[job.order] = job
        with self.blame([job]):
            self._check(job.spec)
            self._answer(job)

    def send(self, job: Job, value: Any) -> None:
        """Hand a job what it waited for, and all that wait for the same; with its image it
        leaves."""
        for each in self._shared.made(job, value):
            with self.blame([each]):
                each.send(value)
                self._answer(each)
                if each.image is not None:
                    self._finish(each)

    def fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """End jobs with an error; those that have left already stay as they ended."""
        for job in jobs:
            if self._jobs.pop(job.order, None):
                self._shared.leave(job)
                job.future.set_exception(explained(error, job))

    def cancel(self, key: str) -> None:
        """End the job called ``key`` if it is here."""
        cancelled = [job for job in self if job.key == key]
        for job in cancelled:
            self._shared.leave(job, midway=True)
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

    def _answer(self, job: Job) -> None:
        """Hand a job all that is known already, or takes no time; let it wait for the rest."""
        while job.image is None:
            made = relieved(self._models, partial(self._at_once, job))
            if made is None:
                self._shared.join(job)
                return
            job.send(made)

    def _at_once(self, job: Job) -> Any:
        match job.request:
            case EncodeText() as request:
                return self._texts.get(request)
            case Resize(source, width, height, upscaler) if not job.aside:
                return resize_latent(source.value, width, height, upscaler)
            case Crop(latent, left, top, width, height):
                return latent.value[:, top : top + height, left : left + width]
        return self._shared.find(job)

    def _finish(self, job: Job) -> None:
        assert job.image is not None
        reading = self._meter.sample()
        self._meter.reset()
        for present in self:
            present.ledger.saw(reading)
        image = job.image.numpy()
        del self._jobs[job.order]
        job.future.set_result(Rendered(image, job.ledger.close()))

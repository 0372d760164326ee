"""An engine core on fake checkpoints, driven by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from farm.spec.job import JobSpec
from farm.worker.engine.core import Core
from farm.worker.engine.job import Job
from farm.worker.engine.stats import Rendered
from tests.fake_models import FakeCheckpoint, FakeModels, profile


class Bench:
    """A core with fake checkpoints, and the jobs it was given."""

    def __init__(self, *checkpoints: FakeCheckpoint, rows: int = 16, **options: Any) -> None:
        self.checkpoint = checkpoints[0] if checkpoints else FakeCheckpoint("fake")
        self.models: Any = FakeModels(*(checkpoints or [self.checkpoint]))
        self.core = Core(self.models, profile(rows), torch.device("cpu"), **options)
        self.jobs: list[Job] = []

    def add(self, *specs: JobSpec) -> list[Job]:
        first = len(self.jobs)
        added = [Job(f"job-{order}", job, order) for order, job in enumerate(specs, start=first)]
        self.jobs += added
        for job in added:
            self.core.jobs.add(job)
        return added

    def run(self, turns: int = 10_000) -> None:
        while self.core.jobs and turns:
            self.core.turn()
            turns -= 1

    def render(self, *specs: JobSpec) -> list[Rendered]:
        jobs = self.add(*specs)
        self.run()
        return [job.future.result(0) for job in jobs]


def alone(job: JobSpec, **options: Any) -> np.ndarray:
    return Bench(**options).render(job)[0].image

"""Latents that are no longer numbers: which precision to try, and for whom from the start."""

from __future__ import annotations

import logging
from collections import Counter

from farm.worker.engine.failures import not_finite
from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.precision import RESCUES

log = logging.getLogger(__name__)


class Rescues:
    """Begins latents that overflow anew in the next higher precision. What saved two images of a
    checkpoint is where its next ones begin."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._saved: Counter[tuple[object, int]] = Counter()

    def prepared(self, job: Job, checkpoint: Checkpoint) -> bool:
        """Whether a job that begins is in the precision that it needs; else it is put there.

        A ``strict`` job finds its own way, so that its image does not depend on who came before.
        """
        lifts = [
            lift
            for (other, lift), times in self._saved.items()
            if times >= RESCUES and other == checkpoint.identity
        ]
        lift = 0 if job.spec.strict else max(lifts, default=0)
        if lift <= job.lift:
            return True
        self._restart(job, lift, checkpoint)
        return False

    def rescue(self, job: Job, checkpoint: Checkpoint, position: int) -> None:
        """After a call, counted from 0, whose latent is not finite: once more in the next
        precision, if there is one."""
        assert job.slot
        program = job.slot.program
        step = program.done[position] + (not program.steps[position].whole)
        if job.lift == checkpoint.rungs:
            # All that asked for the same would get the same.
            for other in list(self._jobs.together(job)):
                self._jobs.fail([other], not_finite(other, step))
            return
        self._restart(job, job.lift + 1, checkpoint)
        log.warning("%s overflowed at step %d; again in %s", job.key, step, job.ledger.precision)

    def done(self, job: Job, checkpoint: Checkpoint) -> None:
        """A latent is finished: remember the precision if it took a higher one."""
        if not job.lift:
            return
        self._saved[checkpoint.identity, job.lift] += 1
        for each in self._jobs.together(job):
            each.ledger.precision = checkpoint.precision(job.lift)

    def _restart(self, job: Job, lift: int, checkpoint: Checkpoint) -> None:
        job.restart(lift)
        job.ledger.precision = checkpoint.precision(lift)

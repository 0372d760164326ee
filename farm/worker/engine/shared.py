"""Results that several jobs ask for: made once while they wait, and kept for those that come."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from farm.worker.engine.job import Job
from farm.worker.engine.kept import Kept
from farm.worker.engine.transfer import download, upload
from farm.worker.memory.exhaustion import out_of_memory

log = logging.getLogger(__name__)


class Shared:
    """Who asks for the same, and what was made of it, as much as fits in ``budget_bytes`` of host
    memory.

    Of jobs that ask for the same the one of the highest rank leads, of these the oldest. It alone
    is worked for, and the others get what it gets. If it leaves before, the next one goes on where
    it stood.

    Args:
        origin: what results are made with beside their request. When it is no longer what it was,
            all are forgotten.
    """

    def __init__(self, budget_bytes: int, origin: Callable[[], object]) -> None:
        self._kept: Kept[str, tuple[Tensor, torch.device]] = Kept(budget_bytes, origin, _bytes)
        self._waiting: dict[str, list[Job]] = {}
        self._begun_with: dict[str, object] = {}

    def find(self, job: Job) -> Tensor | None:
        """What a job waits for, if it was made before and is still here."""
        if job.shares is None:
            return None
        known = self._kept.get(job.shares)
        return None if known is None else upload(*known)

    def join(self, job: Job) -> None:
        """A job waits for what others may wait for too."""
        if job.shares is None:
            return
        if job.shares not in self._waiting:
            self._begun_with[job.shares] = self._kept.made_with
        waiting = self._waiting.setdefault(job.shares, [])
        before = waiting[0] if waiting else None
        waiting.append(job)
        waiting.sort(key=lambda one: (-one.rank, one.order))
        if before not in (None, waiting[0]):
            waiting[0].take_over(before)
        for one in waiting:
            one.leads = one is waiting[0]

    def together(self, job: Job) -> list[Job]:
        """A job, and those that get what it gets."""
        return self._waiting.get(job.shares, [job]) if job.shares else [job]

    def made(self, job: Job, value: Tensor) -> list[Job]:
        """What a job waits for is there: keep it.

        Returns:
            The job, and the others that waited for it.
        """
        if job.shares is None:
            return [job]
        waiting = self._waiting.pop(job.shares, [job])
        # Of two kinds of weights it is nobody's who comes later.
        if self._begun_with.pop(job.shares, None) == self._kept.made_with:
            self._keep(job.shares, value)
        for one in waiting:
            one.leads = True
        return waiting

    def _keep(self, shares: str, value: Tensor) -> None:
        """For those that come later, who can have it made anew: no memory for it is no harm."""
        if not self._kept.fits(value.nbytes):
            return
        try:
            # On a CPU it would be a part of what belongs to other jobs too.
            home = value.clone() if value.device.type == "cpu" else download(value)
        except Exception as error:
            if not out_of_memory(error):
                raise
            log.warning("no memory to keep what several jobs may ask for: %r", error)
            return
        self._kept.put(shares, (home, value.device))

    def leave(self, job: Job, *, midway: bool = False) -> None:
        """A job waits no more.

        Args:
            midway: nothing is wrong with what was made for it so far, so that the next one may go
                on with that.
        """
        waiting = self._waiting.get(job.shares or "", [])
        if job not in waiting:
            return
        waiting.remove(job)
        if not waiting:
            del self._waiting[job.shares or ""], self._begun_with[job.shares or ""]
        elif job.leads:
            waiting[0].leads = True
            if midway:
                waiting[0].take_over(job)


def _bytes(kept: tuple[Tensor, torch.device]) -> int:
    return kept[0].nbytes

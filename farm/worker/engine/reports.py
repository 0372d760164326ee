"""How far jobs are, and what they are like so far, for whoever wants to know."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.engine.transfer import download
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.preview import Previews

log = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[str, int, int], None]
OnPreview: TypeAlias = Callable[[str, int, int, Tensor], None]

PROGRESS_SECONDS = 0.2


@dataclass(frozen=True)
class Preview:
    """How jobs under way are looked at.

    Attributes:
        watched: whether anybody looks at the job of a key; asked a few times a second.
        show: is given key, steps done, steps, and a picture, [h, w, 3] uint8 on the CPU.
    """

    previews: Previews
    watched: Callable[[str], bool]
    show: OnPreview


@dataclass(frozen=True)
class _Coming:
    """A picture on its way home."""

    job: Job
    done: int
    steps: int
    picture: Tensor
    watch: Stopwatch


class Reports:
    """Tells of jobs a few times a second each. What goes wrong with it is nobody's undoing, and
    nobody waits for the device for its sake: a picture is shown after a later step."""

    def __init__(
        self,
        jobs: Jobs,
        device: torch.device,
        *,
        on_progress: Progress | None,
        preview: Preview | None,
    ) -> None:
        self._jobs = jobs
        self._device = device
        self._on_progress = on_progress
        self._preview = preview
        self._coming: deque[_Coming] = deque()

    def tell(self, job: Job, done: int, checkpoint: Checkpoint, estimate: Tensor) -> None:
        """Say how far a job is, and those that get the same, and have a picture made for whoever
        watches.

        Args:
            estimate: of its clean latent, [4, h, w].
        """
        for each in self._jobs.together(job):
            if not each.due(PROGRESS_SECONDS):
                continue
            try:
                if self._on_progress:
                    self._on_progress(each.key, each.before + done, each.steps)
                if self._preview and self._preview.watched(each.key):
                    watch = Stopwatch(self._device)
                    picture = download(self._preview.previews.picture(checkpoint, estimate))
                    watch.stop()
                    self._coming.append(
                        _Coming(each, each.before + done, each.steps, picture, watch)
                    )
            except Exception:
                log.exception("telling the progress of %s failed", each.key)

    def deliver(self) -> None:
        """Show the pictures that are home, of jobs that are still here."""
        while self._preview and self._coming:
            coming = self._coming[0]
            try:
                if not coming.watch.passed:
                    return
                if coming.job in self._jobs:
                    self._preview.show(coming.job.key, coming.done, coming.steps, coming.picture)
            except Exception:
                log.exception("showing a preview of %s failed", coming.job.key)
            self._coming.popleft()

    def rest(self) -> None:
        """Let go of pictures that nobody waits for any more."""
        self._coming.clear()

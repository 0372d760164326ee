"""What placement decides on: who is free, what waits, what users are entitled to."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from farm.dispatch.queues import Kind, Queue, Run


@dataclass(frozen=True, slots=True)
class Seat:
    """A live session: how many jobs it may hold, how many it holds, which checkpoints.

    Attributes:
        warm: checkpoints in its memory, or on their way there.
        can_load: those that its host has; None if that is not known.
        upscalers: models that enlarge pictures, likewise.
        last: what was sent to it last.
        card: what its speed is known by.
        speed: of its card, relative to others.
        tags: that batches may ask for.
        fits: most pixels of an image by checkpoint, where that is known.
        ahead: seconds that what it holds is expected to take.
    """

    session_id: str
    worker: str
    capacity: int
    held: int
    warm: frozenset[str] = frozenset()
    can_load: frozenset[str] | None = None
    last: Kind | None = None
    card: str = ""
    speed: float = 1.0
    tags: frozenset[str] = frozenset()
    fits: Mapping[str, int] = field(default_factory=dict)
    ahead: float = 0.0
    upscalers: frozenset[str] | None = None

    def suits(self, run: Run) -> bool:
        """Whether this card can ever make the jobs of a run."""
        if self.can_load is not None and run.checkpoint not in self.can_load:
            return False
        if self.upscalers is not None and not run.upscalers <= self.upscalers:
            return False
        for checkpoint, pixels in run.largest.items():
            if self.can_load is not None and checkpoint not in self.can_load:
                return False
            if pixels > self.fits.get(checkpoint, pixels):
                return False
        return run.tags <= self.tags


@dataclass(frozen=True, slots=True)
class Claimant:
    """What a user is entitled to.

    Attributes:
        time: what they have had, in GPU-seconds over their weight.
        weight: their part of the farm, relative to others.
        room: how many more jobs of theirs may be in flight; None for any number.
    """

    time: float = 0.0
    weight: float = 1.0
    room: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """``queues``: of each user who waits for something; users unknown are all level."""

    seats: Sequence[Seat]
    queues: Sequence[Queue]
    users: Mapping[int, Claimant] = field(default_factory=dict)

    @property
    def runs(self) -> list[Run]:
        """All that waits, user by user."""
        return [run for queue in self.queues for run in queue.runs]

    def run_of(self, batch_id: int, ord: int) -> Run:
        """The run that a job is of; LookupError if of none."""
        runs = self._by_batch[batch_id]
        place = bisect_right(runs, ord, key=lambda run: run.first) - 1
        if place < 0 or ord >= runs[place].first + runs[place].count:
            raise LookupError(f"no run has job {batch_id}-{ord}")
        return runs[place]

    @cached_property
    def _by_batch(self) -> Mapping[int, Sequence[Run]]:
        return {batch: runs for queue in self.queues for batch, runs in queue.by_batch.items()}

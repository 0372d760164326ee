"""A worker on paper: it makes one job after the other, and loads what it does not hold."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

from farm.dispatch.simulator.trace import Card, Checkpoint

PATIENCE = 10.0
"""Seconds that the engine goes on with a checkpoint while an older job waits for another one."""


class Job(NamedTuple):
    """A job that a card holds; ``level`` is its class, ``seconds`` those on a card of speed 1."""

    level: int
    batch: int
    ord: int
    user: int
    checkpoint: str
    seconds: float
    came: float


class Turn(NamedTuple):
    """A job that begins, and for how long the card is busy with its load and with itself."""

    job: Job
    load: float
    work: float


class Worker:
    """What a card holds, and what it does next, by the rules of the engine's batcher.

    The device makes many jobs at once and each more slowly; for the sum of them, which is what
    counts here, that is the same as one after the other.
    """

    def __init__(self, card: Card, checkpoints: dict[str, Checkpoint]) -> None:
        self.card = card
        self.fits = frozenset(
            name for name, one in checkpoints.items() if one.bytes <= card.weights_bytes
        )
        self.resident: OrderedDict[str, int] = OrderedDict()
        self.held = 0
        self.running: Turn | None = None
        self._checkpoints = checkpoints
        self._queues: tuple[deque[Job], ...] = (deque(), deque(), deque())
        self._turn = ("", 0.0)

    @property
    def warm(self) -> frozenset[str]:
        """What it holds, or is to load for jobs that it was sent."""
        coming = (job.checkpoint for queue in self._queues for job in queue)
        return frozenset(self.resident).union(coming)

    def give(self, job: Job) -> None:
        self._queues[job.level].append(job)
        self.held += 1

    def begin(self, now: float) -> Turn | None:
        """Begin the next job, if there is one."""
        queue = next((queue for queue in reversed(self._queues) if queue), None)
        if queue is None:
            return None
        job = self._next(queue, now)
        queue.remove(job)
        load = self._load(job.checkpoint)
        if self._turn[0] != job.checkpoint:
            self._turn = (job.checkpoint, now)
        self.running = Turn(job, load, job.seconds / self.card.speed)
        return self.running

    def end(self) -> Turn:
        """The running job has ended."""
        assert self.running is not None
        ended, self.running = self.running, None
        self.held -= 1
        return ended

    def _next(self, queue: deque[Job], now: float) -> Job:
        oldest = queue[0]
        current, began = self._turn
        if oldest.checkpoint in self.resident or now - began > PATIENCE:
            return oldest
        return next((job for job in queue if job.checkpoint == current), oldest)

    def _load(self, name: str) -> float:
        """Seconds to make a checkpoint resident; what was used longest ago makes room."""
        if name in self.resident:
            self.resident.move_to_end(name)
            return 0.0
        wanted = self._checkpoints[name]
        while sum(self.resident.values()) + wanted.bytes > self.card.weights_bytes:
            self.resident.popitem(last=False)
        self.resident[name] = wanted.bytes
        return wanted.load_seconds

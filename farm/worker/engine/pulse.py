"""What the engine is doing now, and what it has done so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Literal, TypeAlias

from farm.worker.accountant import Accountant, Work
from farm.worker.engine.timeline import Timeline

Activity: TypeAlias = Literal["idle", "turn"] | Work


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What the engine is doing, and since when on the monotonic clock.

    It beats with every turn, and in it with every load, text, forward and decode. Being ``idle``
    is no reason to worry, a ``load`` seldom; a ``denoise``, one forward, of many times its usual
    seconds is, and so is a ``turn`` that does nothing for long.
    """

    doing: Activity
    since: float


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over the engine's life.

    Attributes:
        forwards: calls of the model.
        rows: in them, without padding.
        padded_rows: added to fill buckets.
        busy_seconds: that the device loaded, encoded, denoised or decoded.
    """

    forwards: int = 0
    rows: int = 0
    padded_rows: int = 0
    busy_seconds: float = 0.0


class Pulse:
    """Written by the engine's thread; any other may read its values.

    Attributes:
        longest: seconds that the longest of each activity took.
        timeline: every activity of late.
        accountant: told what the device does, and for whom.
    """

    def __init__(self, accountant: Accountant | None = None) -> None:
        self.accountant = accountant or Accountant()
        self.heartbeat = Heartbeat("idle", monotonic())
        self.counters = Counters()
        self.longest: Mapping[Activity, float] = {}
        self.timeline = Timeline()

    @contextmanager
    def turning(self) -> Iterator[None]:
        """Beat at both ends of a turn."""
        self.heartbeat = Heartbeat("turn", monotonic())
        try:
            yield
        finally:
            self.heartbeat = Heartbeat("idle", monotonic())

    @contextmanager
    def doing(self, activity: Activity, **detail: Any) -> Iterator[None]:
        """Beat at both ends of the block; ``detail`` goes into the timeline."""
        before, began = self.heartbeat.doing, monotonic()
        self.heartbeat = Heartbeat(activity, began)
        try:
            yield
        finally:
            now = monotonic()
            self.heartbeat = Heartbeat(before, now)
            self.timeline.add("engine", activity, began, now, **detail)
            if now - began > self.longest.get(activity, 0.0):
                self.longest = {**self.longest, activity: now - began}

    def worked(
        self,
        work: Work,
        shares: Mapping[str, float],
        checkpoint: str,
        *,
        forwards: int = 0,
        rows: int = 0,
        padded: int = 0,
    ) -> None:
        """Count work done on the device with a checkpoint: its seconds, by the key of the job they
        were for."""
        self.accountant.work(work, shares, checkpoint)
        done = self.counters
        self.counters = replace(
            done,
            forwards=done.forwards + forwards,
            rows=done.rows + rows,
            padded_rows=done.padded_rows + padded,
            busy_seconds=done.busy_seconds + sum(shares.values()),
        )

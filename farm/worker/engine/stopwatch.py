"""Seconds of work on a device."""

from __future__ import annotations

from time import perf_counter

import torch


class Stopwatch:
    """Times work as the device sees it, and makes nobody wait for it before it is read.

    Work on a GPU is only queued when a call returns, so there the marks are events in its
    queue; on a CPU the clock on the wall does.
    """

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            begin.record()
            self._events = (begin, end)
        self._began = perf_counter()
        self._ended = self._began

    def stop(self) -> None:
        """Mark the end of the work queued so far."""
        if self._events:
            self._events[1].record()
        self._ended = perf_counter()

    @property
    def passed(self) -> bool:
        """Whether the device has passed the stop. Waits for nothing."""
        return self._events is None or self._events[1].query()  # type: ignore[no-untyped-call]

    def seconds(self) -> float:
        """From start to stop. Waits until the device has passed the stop."""
        if not self._events:
            return self._ended - self._began
        begin, end = self._events
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

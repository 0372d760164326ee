"""What was done when: the last few thousand things, for a look at where time goes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

KEPT = 20_000


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took from ``began`` to ``ended``, on the monotonic clock.

    Attributes:
        track: whose time it was: ``engine``, or ``store`` for what goes on beside it.
        detail: what a reader may want to know of it.
    """

    track: str
    name: str
    began: float
    ended: float
    detail: dict[str, Any]


class Timeline:
    """Remembers spans; safe with threads, and cheap enough to be on always."""

    def __init__(self) -> None:
        self._spans: deque[Span] = deque(maxlen=KEPT)
        self._lock = threading.Lock()

    def add(self, track: str, name: str, began: float, ended: float, **detail: Any) -> None:
        """Remember a span; the oldest one is forgotten for it."""
        with self._lock:
            self._spans.append(Span(track, name, began, ended, detail))

    def spans(self) -> tuple[Span, ...]:
        """All that is remembered, in the order in which it ended."""
        with self._lock:
            return tuple(self._spans)


def chrome_trace(spans: Iterable[Span], *, process: str) -> dict[str, Any]:
    """Spans in the Trace Event Format, which chrome://tracing and ui.perfetto.dev show.

    Format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
    """
    spans = list(spans)
    tracks = {track: number for number, track in enumerate(sorted({s.track for s in spans}), 1)}
    start = min((span.began for span in spans), default=0.0)
    named: list[dict[str, Any]] = [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": process}}
    ]
    named += [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": track}}
        for track, number in tracks.items()
    ]
    events = [
        {
            "name": span.name,
            "ph": "X",
            "pid": 1,
            "tid": tracks[span.track],
            "ts": round((span.began - start) * 1e6, 1),
            "dur": round((span.ended - span.began) * 1e6, 1),
            "args": span.detail,
        }
        for span in spans
    ]
    return {"traceEvents": named + events, "displayTimeUnit": "ms"}

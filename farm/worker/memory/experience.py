"""What this kind of card was measured to take, in this life and in those before."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import median_high

from farm.spec.measurement import Call, Measurement

RECENT = 32
"""Timings of a call that are remembered; the quickest counts, as what disturbs one only adds."""
ENOUGH = 12
"""Timings before a call's seconds count, and between two looks at them."""
READINGS = 3
"""Readings of the memory that a call takes, in one life; they cost more than clocks do."""
NEWS = 0.05
"""Change of a call's seconds that is worth telling."""


class Experience:
    """Measurements by call. Belongs to the engine's thread.

    Args:
        known: from lives before, of the same kind of card and the same version of torch.
        tell: is given what is new about a call, to keep for lives to come; it must be quick.
    """

    def __init__(
        self,
        known: Iterable[Measurement] = (),
        tell: Callable[[Measurement], None] = lambda _: None,
    ) -> None:
        self._known: dict[Call, dict[Call, Measurement]] = defaultdict(dict)
        for measured in known:
            self._known[_kind(measured.call)][measured.call] = measured
        self._tell = tell
        self._timings: dict[Call, deque[float]] = defaultdict(lambda: deque(maxlen=RECENT))
        self._timed: dict[Call, int] = defaultdict(int)
        self._readings: dict[Call, int] = defaultdict(int)
        self.changes = 0

    def of(self, call: Call) -> Measurement:
        """What is known of a call."""
        return self._known[_kind(call)].get(call) or Measurement(call)

    def like(self, call: Call) -> Sequence[Measurement]:
        """What is known of calls that differ in pixels and rows alone."""
        return tuple(self._known[_kind(call)].values())

    @property
    def outside(self) -> int | None:
        """Device memory that is taken past torch, mostly; None while not measured."""
        all_known = (one for kind in self._known.values() for one in kind.values())
        found = [one.outside for one in all_known if one.outside is not None]
        return median_high(found) if found else None

    def wants_bytes(self, call: Call) -> bool:
        """Whether this call's memory should be read once more."""
        return self._readings[call] < READINGS

    def timed(self, call: Call, seconds: float, *, enough: int = ENOUGH) -> None:
        """A call took so long. The first of a life is left out: it warms the device up."""
        self._timed[call] += 1
        if self._timed[call] == 1:
            return
        self._timings[call].append(seconds)
        if (self._timed[call] - 1) % enough == 0:
            self._learn(replace(self.of(call), seconds=min(self._timings[call])))

    def took(self, call: Call, bytes: int, outside: int) -> None:
        """A call took so much memory beyond what was held before it."""
        self._readings[call] += 1
        most = max(bytes, self.of(call).bytes or 0)
        self._learn(replace(self.of(call), bytes=most, outside=outside, failed=False))

    def failed(self, call: Call) -> None:
        """Memory ran out in a call."""
        self._learn(replace(self.of(call), failed=True))

    def succeeded(self, call: Call) -> None:
        """A call that failed once was tried on purpose, and there was memory enough."""
        if self.of(call).failed:
            self._learn(replace(self.of(call), failed=False))

    def too_much(self, call: Call) -> bool:
        """Whether memory ran out in a call like this that had no more pixels and no more rows.

        A single row that failed speaks for its own size alone: that is the end of the ladder,
        where whatever else was on the card may have been the reason.
        """
        return any(
            one.failed
            and one.call.rows <= call.rows
            and (one.call.pixels == call.pixels or one.call.rows > 1)
            for one in self.like(call)
            if one.call.pixels <= call.pixels
        )

    def _learn(self, measured: Measurement) -> None:
        kind = self._known[_kind(measured.call)]
        before = kind.get(measured.call)
        kind[measured.call] = measured
        self.changes += 1
        if before is None or _is_news(before, measured):
            self._tell(measured)


def _kind(call: Call) -> Call:
    return replace(call, pixels=0, rows=0)


def _is_news(before: Measurement, now: Measurement) -> bool:
    if replace(before, seconds=None, outside=None) != replace(now, seconds=None, outside=None):
        return True
    if before.seconds is None or now.seconds is None:
        return before.seconds != now.seconds
    return abs(now.seconds / before.seconds - 1) > NEWS

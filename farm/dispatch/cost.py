"""What a job costs in GPU-seconds: guessed from its specification, learnt from those that ended."""

from __future__ import annotations

from statistics import median

from farm.db.rates import Measured
from farm.spec.job import JobSpec

PIXELS = 512 * 512
FIRST_RATE = 0.05
"""GPU-seconds a unit before anything is known: SD1.5 on a card of the middle class."""
FIRST_LOAD = 10.0
"""Seconds to load a checkpoint before one was."""
WEIGHT = 0.1
"""How much one job that ended changes what its checkpoint's next ones are thought to cost."""
SPEED_WEIGHT = 0.02
"""The same of its card, which makes jobs of every checkpoint."""


def units(spec: JobSpec) -> float:
    """The size of a job: rows of model calls of all its passes, of 512x512 pixels each.

    Attention grows faster than the pixels and overheads slower; for images of like size, which is
    what a checkpoint mostly makes, the learnt rate takes that up.
    """
    return sum(each.rows * each.pixels for each in spec.passes) / PIXELS


class Costs:
    """What a job takes: its units x the rate of its checkpoint / the speed of its card.

    The first card heard of has speed 1.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        self._loads: dict[str, float] = {}
        self._speeds: dict[str, float] = {}

    def estimate(self, checkpoint: str, size: float) -> float:
        """Seconds that a job of ``size`` units will take on a card of speed 1.

        Of a checkpoint that nothing is known about, as many as of the middle one that is known.
        """
        return size * _known(self._rates, checkpoint, FIRST_RATE)

    def load(self, checkpoint: str) -> float:
        """Seconds that loading a checkpoint will take."""
        return _known(self._loads, checkpoint, FIRST_LOAD)

    def speed(self, card: str) -> float:
        """How fast a card is, relative to the first one; 1 before anything is known."""
        return self._speeds.get(card, 1.0)

    def know(self, measured: Measured) -> None:
        """Begin with what was measured before."""
        self._rates = dict(measured.rates)
        self._loads = dict(measured.loads)
        self._speeds = dict(measured.speeds)

    def learn(self, checkpoint: str, size: float, seconds: float, card: str = "") -> None:
        """A job of ``size`` units has taken so many seconds of a card, loads not counted."""
        if not self._speeds:
            self._speeds[card] = 1.0
        speed = self.speed(card)
        rate = seconds / size * speed
        before = self._rates.get(checkpoint)
        self._rates[checkpoint] = rate if before is None else before + WEIGHT * (rate - before)
        if before and rate and card != next(iter(self._speeds)):
            self._speeds[card] = speed * (before / rate) ** SPEED_WEIGHT

    def learn_load(self, checkpoint: str, seconds: float) -> None:
        """Loading a checkpoint has taken so long."""
        before = self._loads.get(checkpoint, seconds)
        self._loads[checkpoint] = before + WEIGHT * (seconds - before)


def _known(found: dict[str, float], name: str, first: float) -> float:
    value = found.get(name)
    if value is None:
        return median(found.values()) if found else first
    return value

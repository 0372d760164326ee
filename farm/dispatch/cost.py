"""What a job costs in GPU-seconds: guessed from its specification, learnt from those that ended."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from types import MappingProxyType

from farm.db.rates import Measured
from farm.spec.job import JobSpec

PIXELS = 512 * 512
FIRST_RATE = 0.05
"""GPU-seconds a unit before anything is known: SD1.5 on a card of the middle class."""
FIRST_UPSCALE = 12.0
"""Units of its checkpoint that a picture of 512x512 pixels takes of a model that nothing is known
about: an ESRGAN of 23 blocks computes 35.9 MFLOP a pixel that it is shown, the UNet of SD1.5 3.1 a
pixel and row (torch's FlopCounterMode)."""
FIRST_LOAD = 10.0
"""Seconds to load a checkpoint before one was."""
WEIGHT = 0.1
"""How much one job that ended changes what its checkpoint's next ones are thought to cost."""
SPEED_WEIGHT = 0.02
"""The same of its card, which makes jobs of every checkpoint."""
_NONE: Mapping[str, float] = MappingProxyType({})


def units(spec: JobSpec) -> float:
    """The size of a job: rows of model calls of all its passes, of 512x512 pixels each.

    Attention grows faster than the pixels and overheads slower; for images of like size, which is
    what a checkpoint mostly makes, the learnt rate takes that up.
    """
    return sum(each.rows * each.pixels for each in spec.passes) / PIXELS


def upscaled(spec: JobSpec) -> dict[str, float]:
    """The model that enlarges its picture, and how many times 512x512 pixels it is shown first; of
    most jobs nothing. How often it must run is not known here: that is in its learnt rate."""
    target = spec.target
    if target is None or (target.across <= spec.width and target.down <= spec.height):
        return {}
    return dict.fromkeys(spec.upscalers, spec.width * spec.height / PIXELS)


class Costs:
    """What a job takes: its units x the rate of its checkpoint, and what models that enlarge
    pictures are shown x theirs, / the speed of its card.

    The first card heard of has speed 1.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        self._upscales: dict[str, float] = {}
        self._loads: dict[str, float] = {}
        self._speeds: dict[str, float] = {}

    def estimate(
        self, checkpoint: str, size: float, upscales: Mapping[str, float] = _NONE
    ) -> float:
        """Seconds that a job of ``size`` units will take on a card of speed 1.

        Of a checkpoint that nothing is known about, as many as of the middle one that is known.

        Args:
            upscales: see :func:`upscaled`.
        """
        rate = _known(self._rates, checkpoint, FIRST_RATE)
        first = FIRST_UPSCALE * rate
        shown = (_known(self._upscales, name, first) * much for name, much in upscales.items())
        return size * rate + sum(shown)

    def knows(self, upscaler: str) -> bool:
        """Whether a model that enlarges pictures has been timed."""
        return upscaler in self._upscales

    def load(self, checkpoint: str) -> float:
        """Seconds that loading a checkpoint will take."""
        return _known(self._loads, checkpoint, FIRST_LOAD)

    def speed(self, card: str) -> float:
        """How fast a card is, relative to the first one; 1 before anything is known."""
        return self._speeds.get(card, 1.0)

    def know(self, measured: Measured) -> None:
        """Begin with what was measured before."""
        self._rates = dict(measured.rates)
        self._upscales = dict(measured.upscales)
        self._loads = dict(measured.loads)
        self._speeds = dict(measured.speeds)

    def learn(self, checkpoint: str, size: float, seconds: float, card: str = "") -> None:
        """A job of ``size`` units has taken so many seconds of a card; loads, and models that
        enlarge pictures, not counted."""
        if not self._speeds:
            self._speeds[card] = 1.0
        speed = self.speed(card)
        rate = seconds / size * speed
        before = self._rates.get(checkpoint)
        self._rates[checkpoint] = rate if before is None else before + WEIGHT * (rate - before)
        if before and rate and card != next(iter(self._speeds)):
            self._speeds[card] = speed * (before / rate) ** SPEED_WEIGHT

    def learn_upscale(self, upscaler: str, size: float, seconds: float, card: str = "") -> None:
        """A model that was shown so much has taken so many seconds of a card."""
        rate = seconds / size * self.speed(card)
        before = self._upscales.get(upscaler, rate)
        self._upscales[upscaler] = before + WEIGHT * (rate - before)

    def learn_load(self, checkpoint: str, seconds: float) -> None:
        """Loading a checkpoint has taken so long."""
        before = self._loads.get(checkpoint, seconds)
        self._loads[checkpoint] = before + WEIGHT * (seconds - before)


def _known(found: dict[str, float], name: str, first: float) -> float:
    value = found.get(name)
    if value is None:
        return median(found.values()) if found else first
    return value

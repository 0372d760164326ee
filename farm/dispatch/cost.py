"""What a job costs in GPU-seconds: guessed from its specification, learnt from those that ended."""

from __future__ import annotations

from statistics import median

from farm.spec.job import JobSpec

PIXELS = 512 * 512
FIRST_RATE = 0.05
"""GPU-seconds a unit before anything is known: SD1.5 on a card of the middle class."""
WEIGHT = 0.1
"""How much one job that ended changes what its checkpoint's next ones are thought to cost."""


def units(spec: JobSpec) -> float:
    """The size of a job: rows of model calls, of 512x512 pixels each.

    Attention grows faster than the pixels and overheads slower; for images of like size, which is
    what a checkpoint mostly makes, the learnt rate takes that up.
    """
    return spec.model_rows * spec.width * spec.height / PIXELS


class Costs:
    """GPU-seconds a unit, by checkpoint."""

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}

    def estimate(self, checkpoint: str, size: float) -> float:
        """GPU-seconds that a job of ``size`` units will take.

        Of a checkpoint that nothing is known about, as many as of the middle one that is known.
        """
        rate = self._rates.get(checkpoint)
        return size * (self._usual() if rate is None else rate)

    def learn(self, checkpoint: str, size: float, seconds: float) -> None:
        """A job of ``size`` units has taken so many GPU-seconds, loads included."""
        rate = seconds / size
        before = self._rates.get(checkpoint, rate)
        self._rates[checkpoint] = before + WEIGHT * (rate - before)

    def _usual(self) -> float:
        return median(self._rates.values()) if self._rates else FIRST_RATE

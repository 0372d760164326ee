"""Sums of what the engine holds for an image, so that samplers read as their papers do.

The engine keeps four registers for an image: its latent ``X``, and ``A``, ``B`` and ``C`` for
whatever a sampler remembers; all but ``X`` begin at zero. A call of the model adds ``D``, its
estimate of the clean latent, ``U``, the same for the negative prompt alone, and ``Z``, standard
normal noise. Every update of every sampler is a
sum of these with weights that are known before the first step; four registers are enough for
all of them (linear multistep of order 4 remembers three slopes, UniPC of order 3 two estimates
and its unfinished correction).
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add, sub

NAMES = "XABCDUZ"


class Sum:
    """A weighted sum of ``X``, ``A``, ``B``, ``C``, ``D``, ``U`` and ``Z``.

    Attributes:
        weights: one for each, in this order.
    """

    __slots__ = ("weights",)

    def __init__(self, weights: Iterable[float]) -> None:
        self.weights = tuple(weights)

    def __add__(self, other: Sum) -> Sum:
        return Sum(map(add, self.weights, other.weights))

    def __sub__(self, other: Sum) -> Sum:
        return Sum(map(sub, self.weights, other.weights))

    def __mul__(self, factor: float) -> Sum:
        return Sum(weight * factor for weight in self.weights)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Sum:
        return Sum(weight / divisor for weight in self.weights)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sum) and self.weights == other.weights

    def __hash__(self) -> int:
        return hash(self.weights)

    def __repr__(self) -> str:
        terms = zip(self.weights, NAMES, strict=True)
        return " + ".join(f"{weight:g}·{name}" for weight, name in terms if weight) or "0"


X, A, B, C, D, U, Z = (Sum(float(name == own) for name in NAMES) for own in NAMES)
NOTHING = X * 0.0

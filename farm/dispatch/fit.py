"""What fits on which worker, by what sessions say of their cards."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from farm.db.assets import Size

SIDE_STEP, MIN_SIDE = 8, 64
_WIDTHS = {"float32": 4, "float64": 8}


@dataclass(frozen=True)
class Fit:
    """What a card can do with a checkpoint.

    Attributes:
        memory: bytes that its memory profile has.
        weights: bytes of that, for those of the checkpoint that stay there.
        peaks: (pixels, bytes beside the weights that one image takes at its peak), ascending.
    """

    memory: int
    weights: int
    peaks: tuple[tuple[int, int], ...]

    def peak(self, pixels: int) -> int:
        """Bytes that an image takes at its peak, found between the sizes that are known."""
        places = [known for known, _ in self.peaks]
        place = min(max(bisect_left(places, pixels), 1), len(places) - 1)
        (less, low), (more, high) = self.peaks[place - 1], self.peaks[place]
        return self.weights + int(low + (high - low) * (pixels - less) / (more - less))

    @property
    def most(self) -> int:
        """Pixels of the largest image that fits; 0 where none does."""
        room = self.memory - self.weights
        if self.peaks[-1][1] <= room:
            return self.peaks[-1][0]
        for (less, low), (more, high) in reversed(list(pairwise(self.peaks))):
            if low <= room < high:
                return int(less + (more - less) * (room - low) / (high - low))
        return 0


def fit(told: Mapping[str, Any], size: Size) -> Fit | None:
    """What a card can do with a checkpoint of some size, by what its session has told; None where
    it does not say."""
    family = told.get("families", {}).get(size.family)
    if family is None:
        return None
    own = size.bytes * told["bytes_a_weight"] / _WIDTHS.get(size.dtype or "", 2)
    return Fit(
        memory=told["memory"],
        weights=int(min(own, family["weights"]) * told["share"]),
        peaks=tuple((pixels, peak) for pixels, peak in family["peaks"]),
    )


def nearest(width: int, height: int, most: int) -> tuple[int, int] | None:
    """The largest size of the same shape that has at most so many pixels."""
    for side in range(width, MIN_SIDE - 1, -SIDE_STEP):
        other = max(MIN_SIDE, round(height * side / width / SIDE_STEP) * SIDE_STEP)
        if side * other <= most:
            return side, other
    return None

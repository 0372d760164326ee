"""What fits on which worker, by what sessions say of their cards."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SIDE_STEP, MIN_SIDE = 8, 64


@dataclass(frozen=True)
class Fit:
    """What a card can do with full-size checkpoints of a family.

    Attributes:
        most: pixels of the largest image that fits, with guidance.
        peaks: (pixels, bytes of the card that one such image takes at its peak), ascending.
    """

    most: int
    peaks: tuple[tuple[int, int], ...]

    def peak(self, pixels: int) -> int:
        """Bytes that an image takes at its peak, between the sizes that are known."""
        place = bisect_left(self.peaks, (pixels, 0))
        place = min(max(place, 1), len(self.peaks) - 1)
        (less, low), (more, high) = self.peaks[place - 1], self.peaks[place]
        return int(low + (high - low) * (pixels - less) / (more - less))


def fits_of(device: Mapping[str, Any]) -> dict[str, Fit]:
    """What a session's description of its device says, by family; nothing if it says nothing."""
    told = device.get("fits") or {}
    return {
        family: Fit(fit["most"], tuple((pixels, peak) for pixels, peak in fit["peaks"]))
        for family, fit in told.items()
    }


def nearest(width: int, height: int, most: int) -> tuple[int, int] | None:
    """The largest size of the same shape that has at most so many pixels."""
    for side in range(width, MIN_SIDE - 1, -SIDE_STEP):
        other = max(MIN_SIDE, round(height * side / width / SIDE_STEP) * SIDE_STEP)
        if side * other <= most:
            return side, other
    return None

"""What fits on a card, as a worker tells it, so that others need not know how that is planned."""

from __future__ import annotations

from typing import Any

from farm.worker.memory.pictures import vae_dtype, whole_pixels
from farm.worker.memory.planner import GUIDED_ROWS, peak_bytes
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.memory.weights import PARAMETERS, family_weights

SIDES = (64, *range(128, 1024, 128), *range(1024, 4097, 256))
"""Of the squares at which peaks are told; between them they grow evenly."""


def fits(profile: MemoryProfile) -> dict[str, Any]:
    """Of a profile: its memory and, for each family, the bytes that weights may take of it and
    the peaks of one image with guidance beside weights of no size.

    See :class:`farm.dispatch.fit.Fit` for how they are read.
    """
    over = whole_pixels(profile, vae_dtype(profile))
    pixels = sorted({side * side for side in SIDES} | {over, over + 1})
    return {
        "memory": profile.memory_bytes,
        "share": _share(profile),
        "bytes_a_weight": 4 if profile.dtype == "float32" else 2,
        "families": {
            family: {
                "weights": family_weights(profile, family),
                "peaks": [[each, _peak(profile, family, each, 0)] for each in pixels if each > 0],
            }
            for family in PARAMETERS
        },
    }


def _peak(profile: MemoryProfile, family: str, pixels: int, weights: int) -> int:
    return peak_bytes(profile, family, pixels, GUIDED_ROWS, weights_bytes=weights)


def _share(profile: MemoryProfile) -> float:
    """Bytes that a byte of weights adds to a peak."""
    family = next(iter(PARAMETERS))
    return (_peak(profile, family, 1, 100 * GIB) - _peak(profile, family, 1, 0)) / (100 * GIB)

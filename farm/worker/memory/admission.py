"""Sizes that a card has no memory for are refused before they run."""

from __future__ import annotations

from dataclasses import replace

from farm.errors import DoesNotFit
from farm.spec.sampling import MIN_SIDE, SIDE_STEP
from farm.worker.memory.planner import (
    GUIDED_ROWS,
    Learnt,
    Recorded,
    last_modes,
    rows_allowed,
)
from farm.worker.memory.profiles import GIB, MemoryProfile


def check_fits(
    profile: MemoryProfile,
    family: str,
    width: int,
    height: int,
    *,
    weights_bytes: int | None = None,
    learnt: Learnt | None = None,
    recorded: Recorded | None = None,
    encodes: bool = False,
) -> None:
    """Raise :class:`DoesNotFit` unless an image with guidance fits; names the nearest size.

    Args:
        encodes: whether a picture of that size is encoded, too.
    """

    def fits(width: int, height: int) -> bool:
        rows = rows_allowed(
            profile,
            family,
            width,
            height,
            weights_bytes=weights_bytes,
            learnt=learnt,
            recorded=recorded,
            encodes=encodes,
        )
        pixels = width * height
        failed = learnt is not None and _failed(profile, learnt, pixels, encodes=encodes)
        return rows >= GUIDED_ROWS and not failed

    if fits(width, height):
        return
    narrower = range(width - SIDE_STEP, MIN_SIDE - 1, -SIDE_STEP)
    sizes = ((side, _stepped(height * side / width)) for side in narrower)
    nearest = next((size for size in sizes if fits(*size)), None)
    if nearest is None:
        remedy = "Use a smaller checkpoint or a card with more memory."
    else:
        remedy = f"The nearest size that fits is {nearest[0]}x{nearest[1]}."
    raise DoesNotFit(
        f"{width}x{height} with this {family} checkpoint does not fit the {profile.name} profile"
        f" ({profile.memory_bytes / GIB:.1f} GiB).",
        field="width",
        value=width,
        remedy=remedy,
    )


def _failed(profile: MemoryProfile, learnt: Learnt, pixels: int, *, encodes: bool) -> bool:
    """Whether memory ran out at this size with nothing left to give up."""
    decoding, encoding = last_modes(profile, pixels, learnt.vae.dtype)
    calls = [replace(learnt.unet, rows=1), replace(learnt.vae, mode=decoding)]
    if encodes:
        calls.append(replace(learnt.vae, mode=encoding))
    return any(learnt.experience.too_much(replace(call, pixels=pixels)) for call in calls)


def _stepped(side: float) -> int:
    return max(MIN_SIDE, round(side / SIDE_STEP) * SIDE_STEP)

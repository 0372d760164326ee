"""How many UNet rows fit on a card, predicted before anything runs."""

from __future__ import annotations

from farm.worker.memory.profiles import MemoryProfile


def rows_allowed(
    profile: MemoryProfile,
    family: str,
    width: int,
    height: int,
    *,
    weights_bytes: int | None = None,
) -> int:
    """Most UNet rows of one forward at ``width`` x ``height`` pixels; 0 where none fit.

    Args:
        family: ``sd15`` or ``sdxl``.
        weights_bytes: resident bytes of the checkpoint where known; else those of the family.
    """
    raise NotImplementedError


def check_fits(
    profile: MemoryProfile,
    family: str,
    width: int,
    height: int,
    *,
    weights_bytes: int | None = None,
) -> None:
    """Raise :class:`farm.errors.DoesNotFit`, naming the nearest size that does fit."""
    raise NotImplementedError

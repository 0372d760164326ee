"""How many UNet rows fit on a card, predicted before anything runs.

The peak is ``weights + max(UNet, VAE) + workspaces``; activations of the UNet grow with rows and
pixels, those of the VAE with pixels. The constants were computed by tracking live storages on
``meta`` and agree within 1.5 % with four published and measured peaks of float16 and float32
runs on CUDA; they are not measured on this card.
"""

from __future__ import annotations

from farm.errors import DoesNotFit
from farm.worker.memory.profiles import GIB, PIXELS_1024, MemoryProfile

MIB = 2**20
UNET_ROW = {
    "sd15": 260 * MIB,
    "sd2": 260 * MIB,
    "sdxl": 158 * MIB,
    "sdxl-refiner": 189 * MIB,
    "ssd1b": 158 * MIB,
}
"""Activations of one row at 1024x1024 in float16."""
VAE_IMAGE = 1536 * MIB
"""Activations of decoding one 1024x1024 image in float16, not tiled."""
VAE_TILE, VAE_TILED_IMAGE = 378 * MIB, 11 * MIB
"""Decoding in tiles of 512: one tile, and the picture put together, per 1024x1024."""
PARAMETERS = {
    "sd15": 1_066_200_000,
    "sd2": 1_290_000_000,
    "sdxl": 3_468_800_000,
    "sdxl-refiner": 3_037_800_000,
    "ssd1b": 2_232_700_000,
}
TEXT_PARAMETERS = {
    "sd15": 123_100_000,
    "sd2": 340_400_000,
    "sdxl": 817_700_000,
    "sdxl-refiner": 694_700_000,
    "ssd1b": 817_700_000,
}

WORKSPACE, WORKSPACE_SHARE = 0.15 * GIB, 0.22
RESERVE_SHARE, RESERVE = 1.09, 0.1 * GIB
CONTEXT = 0.5 * GIB
GUIDED_ROWS = 2
SIDE_STEP, MIN_SIDE = 8, 64


def rows_allowed(
    profile: MemoryProfile,
    family: str,
    width: int,
    height: int,
    *,
    weights_bytes: int | None = None,
) -> int:
    """Most UNet rows of one forward at ``width`` x ``height`` pixels: a bucket, or 0.

    Args:
        family: a key of :data:`PARAMETERS`.
        weights_bytes: bytes of all resident weights where known; else those of one checkpoint
            of the family.
    """
    worth = profile.rows_at_1024 * PIXELS_1024 // (width * height)
    limit = max(GUIDED_ROWS, worth)
    for rows in reversed(profile.buckets):
        if rows <= limit:
            peak = peak_bytes(profile, family, width * height, rows, weights_bytes=weights_bytes)
            if peak <= profile.memory_bytes:
                return rows
    return 0


def peak_bytes(
    profile: MemoryProfile,
    family: str,
    pixels: int,
    rows: int,
    *,
    weights_bytes: int | None = None,
) -> int:
    """Predicted peak that the process takes from the device, context included."""
    width = 4 if profile.dtype == "float32" else 2
    weights = family_weights(profile, family) if weights_bytes is None else weights_bytes
    images = pixels / PIXELS_1024
    unet = UNET_ROW[family] * images * rows
    tiled = pixels > profile.vae_tile_over
    vae = VAE_TILE + VAE_TILED_IMAGE * images if tiled else VAE_IMAGE * images
    activations = max(unet, vae) * width / 2
    allocated = weights + activations + WORKSPACE + WORKSPACE_SHARE * activations
    return int(allocated * RESERVE_SHARE + RESERVE + CONTEXT)


def family_weights(profile: MemoryProfile, family: str) -> int:
    """Resident bytes of a full-size checkpoint of ``family``."""
    parameters = PARAMETERS[family]
    if profile.offload == "model":
        parameters -= TEXT_PARAMETERS[family]
    return parameters * (4 if profile.dtype == "float32" else 2)


def check_fits(
    profile: MemoryProfile,
    family: str,
    width: int,
    height: int,
    *,
    weights_bytes: int | None = None,
) -> None:
    """Raise :class:`DoesNotFit` unless an image with guidance fits; names the nearest size."""

    def fits(width: int, height: int) -> bool:
        rows = rows_allowed(profile, family, width, height, weights_bytes=weights_bytes)
        return rows >= GUIDED_ROWS

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


def _stepped(side: float) -> int:
    return max(MIN_SIDE, round(side / SIDE_STEP) * SIDE_STEP)

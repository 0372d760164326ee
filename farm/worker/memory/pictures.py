"""What pictures take of a card by formula: made of latents, made latents, and enlarged by models.

Activations of float16, counted by the shapes of the models' tensors; kernels come on top, see
:mod:`farm.worker.memory.planner`.
"""

from __future__ import annotations

from farm.worker.memory.profiles import PIXELS_512, PIXELS_1024, MemoryProfile

MIB = 2**20
VAE_IMAGE = 1536 * MIB
"""Of decoding one 1024x1024 image, not tiled."""
VAE_TILE, VAE_TILED_IMAGE = 378 * MIB, 11 * MIB
"""Decoding in tiles: one of 512x512, and the picture put together, per 1024x1024."""
TAESD_IMAGE = 384 * MIB
"""Decoding one 1024x1024 image by TAESD."""
VAE_PICTURE = 1280 * MIB
"""Of encoding one 1024x1024 picture, not tiled."""
VAE_PICTURE_TILE, VAE_TILED_PICTURE = 320 * MIB, 7 * MIB
"""Encoding in tiles: one of 512x512, and the whole picture beside it, per 1024x1024."""
SHOWN_PIXEL, MADE_PIXEL = 1152, 256
"""Bytes of each pixel that a model which enlarges is shown, and of each that it makes; whichever
is more in all. Those of ESRGAN with 64 filters, as nearly all have; others are learnt."""


def width_of(dtype: str) -> int:
    """Bytes of a number of that precision, by its torch name."""
    return 4 if dtype == "float32" else 2


def vae_dtype(profile: MemoryProfile) -> str:
    """The precision that a VAE is held in, and that pictures begin in."""
    return profile.dtype if profile.vae_dtype == "auto" else profile.vae_dtype


def whole_pixels(profile: MemoryProfile, dtype: str) -> int:
    """Most pixels of a picture that the VAE makes, or reads, as a whole in this precision.

    Half as many in float32 on a card whose profile is of float16, so that a picture which overflows
    takes no more memory than others may.
    """
    most = profile.vae_tile_over
    return min(most, most * width_of(profile.dtype) // width_of(dtype))


def decode_mode(profile: MemoryProfile, pixels: int, dtype: str) -> str:
    """How a picture of this size is decoded: ``whole``, ``tiles`` or ``taesd``."""
    if profile.vae == "taesd":
        return "taesd"
    return "tiles" if pixels > whole_pixels(profile, dtype) else "whole"


def decoded(profile: MemoryProfile, pixels: int, mode: str) -> float:
    """Bytes in float16 of decoding one picture."""
    images = pixels / PIXELS_1024
    match mode:
        case "taesd":
            return TAESD_IMAGE * images
        case "tiles":
            return VAE_TILE * profile.vae_tile**2 / PIXELS_512 + VAE_TILED_IMAGE * images
        case _:
            return VAE_IMAGE * images


def encoded(profile: MemoryProfile, pixels: int, mode: str) -> float:
    """Bytes in float16 of encoding one picture; ``mode`` is ``encode`` or ``encode-tiles``."""
    images = pixels / PIXELS_1024
    if mode == "encode":
        return VAE_PICTURE * images
    return VAE_PICTURE_TILE * profile.vae_tile**2 / PIXELS_512 + VAE_TILED_PICTURE * images


def enlarged(pixels: int, scale: int) -> float:
    """Bytes in float16 of enlarging so many pixels, ``scale`` times in either direction."""
    return float(pixels * max(SHOWN_PIXEL, MADE_PIXEL * scale**2))

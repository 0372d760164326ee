"""Hires fix: an image made small, enlarged, and made anew in part at its full size.

The small image settles what is where, at a size that the model was trained at; the second pass
adds what only fits on the large one.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from farm.spec.hires import LATENT_UPSCALERS, Target, is_model
from farm.spec.job import JobSpec
from farm.worker.engine.requests import (
    Begin,
    Crop,
    Decode,
    EncodeImage,
    Made,
    Request,
    Resize,
    Upscale,
)
from farm.worker.recipes.denoising import denoise

if TYPE_CHECKING:
    from torch import Tensor

FACTOR = 8
MODEL_RUNS = 3
"""How often a model may enlarge a picture, as in webui."""


def hires(
    spec: JobSpec, small: Made[Tensor], target: Target
) -> Generator[Request, Made[Any], Made[Tensor]]:
    """Enlarge the latent of the first pass, and denoise it once more.

    The noise of the second pass is that of the same seeds at the new size, as in webui.

    Returns:
        [4, height/8, width/8] of the target.
    """
    latent = yield from _enlarged(spec, small, target)
    for second in spec.passes[1:]:
        begin = Begin(latent, second.taken.skipped, spec.extra_noise)
        latent = yield from denoise(spec, second, begin=begin)
    return latent


def _enlarged(
    spec: JobSpec, small: Made[Tensor], target: Target
) -> Generator[Request, Made[Any], Made[Tensor]]:
    """A latent stretched, as it is or as a picture, and what stands out of the target cut off."""
    across, down, upscaler = target.across, target.down, spec.hires_upscaler
    latent: Made[Tensor]
    if upscaler in LATENT_UPSCALERS:
        latent = yield Resize(small, across // FACTOR, down // FACTOR, upscaler)
    else:
        first, last = spec.passes[0], spec.passes[-1]
        picture: Made[Tensor] = yield Decode(first.checkpoint, small, kept=True)
        if is_model(upscaler):
            picture = yield from _by_model(last.checkpoint, picture, spec, target)
        else:
            picture = yield Resize(picture, across, down, upscaler)
        # Latents of the next checkpoint need not be what they are to this one.
        latent = yield EncodeImage(last.checkpoint, picture, kept=True)
    width, height = target.width // FACTOR, target.height // FACTOR
    if (width, height) == (across // FACTOR, down // FACTOR):
        return latent
    return (yield Crop(latent, target.left, target.top, width, height))


def _by_model(
    checkpoint: str, picture: Made[Tensor], spec: JobSpec, target: Target
) -> Generator[Request, Made[Any], Made[Tensor]]:
    """A picture enlarged until it fills the target, and resized to that."""
    height, width = picture.value.shape[:2]
    scale = max(target.across / width, target.down / height)
    across, down = (int(side * scale // FACTOR * FACTOR) for side in (width, height))
    for _ in range(MODEL_RUNS):
        if width >= across and height >= down:
            break
        picture = yield Upscale(checkpoint, picture, spec.hires_upscaler, kept=True)
        if picture.value.shape[:2] == (height, width):
            break
        height, width = picture.value.shape[:2]
    if scale > 1:
        picture = yield Resize(picture, across, down, "None")
    return (yield Resize(picture, target.across, target.down, "None"))

"""An image from text alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.spec.job import JobSpec
from farm.worker.engine.requests import Decode, Made, Recipe
from farm.worker.recipes.denoising import denoise
from farm.worker.recipes.hires import hires

if TYPE_CHECKING:
    from torch import Tensor


def txt2img(spec: JobSpec) -> Recipe:
    """Read the prompts, sample a latent from the seed's noise, enlarge it if that is asked for,
    decode it.

    Returns:
        [height, width, 3] uint8 pixels on the CPU.
    """
    target = spec.target
    latent = yield from denoise(spec, spec.passes[0], kept=target is not None)
    if target:
        latent = yield from hires(spec, latent, target)
    image: Made[Tensor] = yield Decode(spec.passes[-1].checkpoint, latent)
    return image.value

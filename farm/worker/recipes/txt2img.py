"""An image from text alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.spec import networks
from farm.spec.job import JobSpec
from farm.worker.engine.requests import Decode, Denoise, Made, Recipe
from farm.worker.recipes.prompts import read_prompts

if TYPE_CHECKING:
    from torch import Tensor


def txt2img(spec: JobSpec) -> Recipe:
    """Read the prompts, sample a latent from the seed's noise, decode it.

    Returns:
        [height, width, 3] uint8 pixels on the CPU.
    """
    prompt, negative = yield from read_prompts(spec)
    latent: Made[Tensor] = yield Denoise(
        checkpoint=spec.checkpoint,
        width=spec.width,
        height=spec.height,
        sampler=spec.sampler,
        steps=spec.steps,
        prompt=prompt,
        negative=negative,
        cfg_scale=spec.cfg_scale,
        guidance=spec.guidance,
        seed=spec.seed,
        sampling=spec.sampling,
        noise=spec.noise,
        strict=spec.strict,
        loras=networks.parse(spec.prompt).unet,
    )
    image: Made[Tensor] = yield Decode(spec.checkpoint, latent)
    return image.value

"""An image from text alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from farm.spec import networks
from farm.spec.job import JobSpec
from farm.worker.engine.requests import Decode, Denoise, EncodeText, Made, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from farm.worker.models.text import TextEncoding


def txt2img(spec: JobSpec) -> Recipe:
    """Read the prompts, sample a latent from the seed's noise, decode it.

    Returns:
        [height, width, 3] uint8 pixels on the CPU.
    """
    asked = networks.parse(spec.prompt)
    prompt: Made[TextEncoding] = yield EncodeText(spec.checkpoint, asked.text, loras=asked.te)
    negative: Made[TextEncoding] | None = None
    if spec.guided:
        negative = yield EncodeText(
            spec.checkpoint, spec.negative_prompt, negative=True, loras=asked.te
        )
    latent: Made[Tensor] = yield Denoise(
        checkpoint=spec.checkpoint,
        width=spec.width,
        height=spec.height,
        sampler=spec.sampler,
        steps=spec.steps,
        prompt=prompt,
        negative=negative,
        cfg_scale=spec.cfg_scale,
        seed=spec.seed,
        sampling=spec.sampling,
        noise=spec.noise,
        strict=spec.strict,
        loras=asked.unet,
    )
    image: Made[Tensor] = yield Decode(spec.checkpoint, latent)
    return image.value

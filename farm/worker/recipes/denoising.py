"""A pass of a job: its prompts read, and a latent made."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from farm.spec.job import JobSpec
from farm.spec.passes import Pass
from farm.worker.engine.requests import Begin, Denoise, Made, Request
from farm.worker.recipes.prompts import read_prompts

if TYPE_CHECKING:
    from torch import Tensor


def denoise(
    spec: JobSpec, own: Pass, *, begin: Begin | None = None, kept: bool = False
) -> Generator[Request, Made[Any], Made[Tensor]]:
    """Go down the noise levels of one pass.

    Args:
        begin: what with, and where; None for noise alone.
        kept: whether other jobs are likely to ask for the same.

    Returns:
        [4, height/8, width/8], clean.
    """
    prompt, negative = yield from read_prompts(own, spec.reading, strict=spec.strict)
    return (
        yield Denoise(
            checkpoint=own.checkpoint,
            width=own.width,
            height=own.height,
            sampler=own.sampler,
            steps=own.taken.steps,
            prompt=prompt,
            negative=negative,
            cfg_scale=own.cfg_scale,
            guidance=own.guidance,
            seed=spec.seed,
            sampling=spec.sampling,
            noise=spec.noise,
            strict=spec.strict,
            loras=own.asked.unet,
            begin=begin,
            kept=kept,
        )
    )

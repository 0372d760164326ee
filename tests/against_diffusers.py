"""What the engine made, and diffusers' schedulers brought to the same sigmas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.decoder import Draft
from farm.worker.samplers import Program

CPU = torch.device("cpu")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Made(NamedTuple):
    """A job's latent, and its image."""

    latent: Tensor
    image: np.ndarray


def engine_s(models: ModelCache, *jobs: JobSpec, assets: Iterable[AssetFile] = ()) -> list[Made]:
    """What the engine makes of jobs of one checkpoint that are there together."""
    checkpoint: Any = models.get(jobs[0].checkpoint)
    latents: dict[bytes, Tensor] = {}

    def drafted(latent: Tensor, *, whole: bool = False, strict: bool = False) -> Draft:
        draft: Draft = type(checkpoint).draft(checkpoint, latent, whole=whole, strict=strict)
        latents[draft.pixels.numpy().tobytes()] = latent
        return draft

    checkpoint.draft = drafted
    try:
        engine = Engine(models, by_name("cpu"), CPU, assets=assets)
        futures = [engine.submit(str(place), job) for place, job in enumerate(jobs)]
        with engine:
            images = [future.result(120).image for future in futures]
    finally:
        del checkpoint.draft
    return [Made(latents[image.tobytes()], image) for image in images]


def visiting(scheduler: type[Any], program: Program, *, last: float = 0.0) -> type[Any]:
    """A scheduler of diffusers that visits the sigmas of a program.

    Left alone it would interpolate sigmas instead of their logarithms, or round timesteps.
    """

    class Visiting(scheduler):
        def set_timesteps(self, *_: Any, **__: Any) -> None:
            super().set_timesteps(len(program.steps), device="cpu")
            self.sigmas = torch.tensor([step.sigma for step in program.steps] + [last])
            self.timesteps = torch.tensor([step.t for step in program.steps])

    return Visiting


def euler(program: Program, prediction: str = "epsilon") -> Any:
    """diffusers' Euler at the sigmas of a program."""
    return visiting(EulerDiscreteScheduler, program)(
        **BETAS, timestep_spacing="linspace", prediction_type=prediction
    )

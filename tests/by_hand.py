"""An image of a fake checkpoint by a plain loop in float64: one job, no rows, no batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from farm.spec.job import JobSpec
from farm.worker.samplers import Draw, compile_program
from farm.worker.samplers.model_sigmas import ModelSigmas
from farm.worker.samplers.noise import ImageNoise
from tests.fake_models import ALPHAS, denoised, mean_of


def by_hand(
    job: JobSpec, begun: NDArray[np.float64] | None = None, skipped: int | None = None
) -> NDArray[np.float64]:
    """[height / 8, width / 8, 4], as a fake checkpoint decodes it.

    Args:
        begun: another such image that it begins with.
        skipped: steps that are left out then.
    """
    program = compile_program(job.sampler, job.steps, ALPHAS, options=job.sampling, skipped=skipped)
    shape = (4, job.height // 8, job.width // 8)
    noise = ImageNoise(shape, job.seed, job.noise, program.halving)
    registers = np.zeros((4, *shape))
    registers[0] = noise.first.numpy() * program.start.noise
    if program.start.churn is not None:
        registers[0] += noise.draw(Draw()).numpy() * program.start.churn
    if begun is not None:
        registers[0] += begun.transpose(2, 0, 1)
    for step in program.steps:
        # Told a timestep, the model takes the noise level to be that one's.
        level = ModelSigmas(ALPHAS).sigma(step.t)
        seen = registers[0] * ((level**2 + 1) / (step.sigma**2 + 1)) ** 0.5
        towards = denoised(seen, level, mean_of(job.prompt))
        away = denoised(seen, level, mean_of(job.negative_prompt))
        guided = (seen - away - (towards - away) * job.cfg_scale) / level
        negative = (seen - away) / level
        estimates = [registers[0] - step.sigma * found for found in (guided, negative)]
        drawn = noise.draw(step.draw).numpy() if step.draw else np.zeros(shape)
        held = [*registers, *estimates, drawn]
        registers = np.tensordot(np.array(step.update), np.stack(held), axes=1)
    return registers[0].transpose(1, 2, 0)

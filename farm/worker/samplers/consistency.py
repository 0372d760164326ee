"""Samplers of consistency models: LCM and TCD."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import floor, log, sqrt

import numpy as np

from farm.worker.samplers.algebra import D, X, Z
from farm.worker.samplers.course import Course
from farm.worker.samplers.program import FRESH, Step
from farm.worker.samplers.schedules import consistency_timesteps

SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def lcm(course: Course) -> Iterator[Step]:
    """Multistep consistency sampling (Luo et al. 2023, arXiv 2310.04378, algorithm 3).

    The model is told the nearest of the timesteps it learnt, and its estimate is blended with
    the latent so that at timestep 0 it would be the latent itself.
    """
    taught = consistency_timesteps(course.model)
    levels = np.log([course.model.sigma(t) for t in taught])
    for sigma, following in pairwise(course.sigmas):
        t = float(taught[np.abs(levels - log(sigma)).argmin()])
        scaled = t * TIMESTEP_SCALING
        kept = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        estimate = D * (scaled / sqrt(scaled**2 + SIGMA_DATA**2)) + X * kept
        x = estimate + Z * following
        step = course.step(sigma, x, draw=FRESH if following else None)
        yield replace(step, t=t)


def tcd(course: Course) -> Iterator[Step]:
    """Strategic stochastic sampling (Zheng et al. 2024, arXiv 2402.19159, algorithm 4).

    Each step goes down beyond the next timestep ``t'``, to ``(1 - eta) t'``, and noise leads back
    up. The latent is scaled to variance 1 if the schedule ends above noise level 0.
    """
    for sigma, following in pairwise(course.sigmas):
        if following == 0:
            yield course.step(sigma, D)
            return
        ahead = course.model.timestep(following)
        down = course.model.sigma(floor((1 - course.eta) * ahead + 1e-9))
        x = D + (X - D) * (down / sigma)
        if following == course.sigmas[-1]:
            yield course.step(sigma, x / sqrt(following**2 + 1))
            return
        up = sqrt(max(following**2 - down**2, 0.0))
        yield course.step(sigma, x + Z * up, draw=FRESH if up else None)

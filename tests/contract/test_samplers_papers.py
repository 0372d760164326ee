"""Samplers that neither k-diffusion nor diffusers has, written out plainly.

All in float64, in the analytic world of ``tests/analytic.py``, at every call of the model.
"""

from __future__ import annotations

from itertools import count, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from farm.worker.samplers.model_sigmas import ModelSigmas
from farm.worker.samplers.schedules import Span, karras
from tests.analytic import PICTURE, denoised, fresh, run
from tests.contract.test_samplers_diffusers import STEPS, compiled
from tests.fake_models import ALPHAS

MODEL = ModelSigmas(ALPHAS)
Latents = NDArray[np.float64]


@pytest.mark.parametrize("steps", [*STEPS, 4, 8])
def test_lcm_is_multistep_consistency_sampling(steps: int) -> None:
    taught = np.arange(19, 1000, 20)
    levels = np.array([MODEL.sigma(t) for t in taught])
    timesteps = np.linspace(999, 19, steps)
    sigmas = [*np.exp(np.interp(timesteps, taught, np.log(levels))), 0.0]
    x = fresh(0) * sigmas[0]
    seen = [x]
    for draw, (sigma, following) in enumerate(pairwise(sigmas), start=1):
        t = taught[np.abs(np.log(levels) - np.log(sigma)).argmin()]
        skip = 0.25 / ((10 * t) ** 2 + 0.25)
        out = 10 * t / ((10 * t) ** 2 + 0.25) ** 0.5
        x = skip * x + out * denoised(x, sigma) + following * fresh(draw)
        seen.append(x)
    program = compiled("LCM", steps)
    assert {step.t for step in program.steps} <= set(taught)
    np.testing.assert_allclose(run(program), seen, rtol=0, atol=1e-9)


RESTARTS = {20: (1, 9), 36: (2, 9), 150: (2, 37)}
"""By the number of steps, how many there are and how long they take."""


@pytest.mark.parametrize("steps", [*STEPS, 19, 36])
def test_restart_goes_back_up_and_down_again(steps: int) -> None:
    restarts, length = RESTARTS.get(steps, (0, 0))
    span = Span(MODEL.smallest, MODEL.largest)
    sigmas = karras(MODEL, steps - restarts * length, span)
    spans = list(pairwise(sigmas))
    if restarts:
        low = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - 0.1))
        high = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - 2))
        again = karras(MODEL, length + 1, Span(sigmas[low], sigmas[high]))[:-1]
        spans[low:low] = list(pairwise(again)) * restarts
    draws = map(fresh, count(1))
    x, before, seen = fresh(0) * sigmas[0], sigmas[0], []
    for sigma, following in spans:
        if sigma > before:
            x = x + next(draws) * (sigma**2 - before**2) ** 0.5
        seen.append(x)
        slope = (x - denoised(x, sigma)) / sigma
        ahead = x + slope * (following - sigma)
        if following:
            seen.append(ahead)
            slope = (slope + (ahead - denoised(ahead, following)) / following) / 2
        x, before = x + slope * (following - sigma), following
    program = compiled("Restart", steps)
    assert sum(step.draw is not None for step in program.steps) == restarts
    np.testing.assert_allclose(run(program), [*seen, x], rtol=0, atol=1e-9)


def disagreeing(x: Latents, sigma: float) -> Latents:
    """What a negative prompt's estimate may be."""
    return denoised(x, sigma) * 0.7 - PICTURE * 0.2


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_cfg_pp_renews_the_noise_of_the_negative_prompt(steps: int, eta: float) -> None:
    program = compiled("Euler a CFG++", steps, eta=eta)
    alphas = [1 / (step.sigma**2 + 1) for step in program.steps] + [1.0]
    x, draws, seen = fresh(0) * program.start.noise * alphas[0] ** 0.5, count(1), []
    for alpha, following in pairwise(alphas):
        latent, sigma = x / alpha**0.5, (1 / alpha - 1) ** 0.5
        seen.append(latent)
        noise = (latent - disagreeing(latent, sigma)) / sigma
        up = eta * ((1 - following) / (1 - alpha) * (1 - alpha / following)) ** 0.5
        x = following**0.5 * denoised(latent, sigma) + (1 - following - up**2) ** 0.5 * noise
        x = x + up * fresh(next(draws)) if up else x
    ours = run(program, negative=disagreeing)
    np.testing.assert_allclose(ours, [*seen, x], rtol=0, atol=1e-9)

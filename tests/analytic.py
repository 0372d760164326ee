"""A world in which the best estimate of the clean latent is known: two pictures, equally likely.

Both k-diffusion (in torch) and the programs (in numpy) are run in it, with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from math import log

import numpy as np
from numpy.typing import NDArray

from farm.worker.samplers import Program

Model = Callable[[NDArray[np.float64], float], NDArray[np.float64]]

PICTURE = np.array([0.3, -0.8, 1.4])
SPREAD = 0.4
"""The clean latent is ``PICTURE`` or ``-PICTURE``, each number with this standard deviation."""


BEGUN = np.array([0.5, -0.2, 0.9])
"""What an image begins with that does not begin with noise alone."""


def denoised(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """The mean of all clean latents that ``x`` may come from."""
    variance = SPREAD**2 + sigma**2
    return (x * SPREAD**2 + sigma**2 * PICTURE * np.tanh(x * PICTURE / variance)) / variance


def fresh(draw: int) -> NDArray[np.float64]:
    """Noise number ``draw``, from 0."""
    return 1.2 * np.cos(np.array([1.3, 2.1, 3.7]) * (draw + 1))


def path(sigma: float, following: float) -> NDArray[np.float64]:
    """Noise of the way between two noise levels."""
    return 1.1 * np.cos(np.array([1.0, 2.0, 3.0]) * (log(sigma) + 2 * log(following)))


def run(
    program: Program,
    model: Model = denoised,
    begun: NDArray[np.float64] | float = 0.0,
    negative: Model | None = None,
) -> NDArray[np.float64]:
    """The latents that the model sees under a program, one row a call, and the last one.

    Args:
        negative: the model with the negative prompt; the same where there is none.
    """
    draws = map(fresh, count())
    x = begun + next(draws) * program.start.noise
    if program.start.churn is not None:
        x = x + next(draws) * program.start.churn
    state = np.stack([x, *np.zeros((3, len(x)))])
    begun, second, seen = x, x, []
    while len(seen) < len(program.steps):
        step = program.steps[len(seen)]
        seen.append(state[0])
        noise = np.zeros_like(x)
        if step.draw:
            noise = path(*step.draw.between) if step.draw.between else next(draws)
        estimates = (each(state[0], step.sigma) for each in (model, negative or model))
        held = np.stack([*state, *estimates, noise])
        state = np.array(step.update) @ held
        pilot = program.pilot
        if pilot and not pilot.ended and len(seen) == len(program.steps):
            tolerance = np.maximum(0.0078, 0.05 * np.maximum(abs(state[3]), abs(second)))
            error = np.mean(((state[3] - state[0]) / tolerance) ** 2) ** 0.5
            up = pilot.judge(error)
            if up is not None:
                begun, second = state[0] + (up * next(draws) if up else 0), state[3]
            state[0] = begun
    return np.stack([*seen, state[0]])

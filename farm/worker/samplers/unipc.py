"""UniPC: a predictor, and a corrector that costs no call of its own."""

from __future__ import annotations

from collections.abc import Iterator
from math import expm1, log

import numpy as np

from farm.worker.samplers.algebra import A, B, C, D, Sum, X
from farm.worker.samplers.course import Course
from farm.worker.samplers.program import Step

ORDER = 3


def unipc(course: Course) -> Iterator[Step]:
    """Multistep UniPC of order 3, predicting the clean latent, with B(h) = h
    (Zhao et al. 2023, arXiv 2302.04867, algorithms 5 and 6).

    Each call sees a prediction and then first corrects it with what it found there. All of the
    correction but the new estimate's own share is known one step before: that is A. B and C
    are the last two estimates. Orders rise from 1 at the beginning and fall back to it at the
    end. Where a schedule ends above noise level 0, so does the last step, and as UniPC's latents
    are scaled to variance 1, its result is too.
    """
    sigmas, steps = course.sigmas, len(course.sigmas) - 1
    share = 0.0
    for i in range(steps):
        sigma, following = sigmas[i], sigmas[i + 1]
        x = A + D * share if i else X
        if following == 0:
            yield course.step(sigma, D)
            return
        order = min(ORDER, i + 1, steps - i)
        lambdas = [-log(level) for level in (following, *sigmas[i::-1][:ORDER])]
        base = x * (following / sigma) + D * (1 - following / sigma)
        predicted = base + _bent(lambdas, order, corrects=False)[0]
        if i == steps - 1:
            predicted = predicted / (following**2 + 1) ** 0.5
        bend, share = _bent(lambdas, order, corrects=True)
        yield course.step(sigma, predicted, a=base + bend, b=D, c=B)


def _bent(lambdas: list[float], order: int, *, corrects: bool) -> tuple[Sum, float]:
    """What older estimates add to a first order step, and the weight of the one to come.

    Args:
        lambdas: ``-log sigma`` of where the step leads, where it begins, and before that.
        corrects: uses the estimate at the step's end, which is the next call's D.
    """
    h = lambdas[0] - lambdas[1]
    places = [(past - lambdas[1]) / h for past in lambdas[2 : order + 1]]
    weights = _weights([*places, 1.0] if corrects else places, h)
    bend = D * 0.0
    for estimate, place, weight in zip((B, C), places, weights, strict=False):
        bend += (estimate - D) * (h * weight / place)
    share = h * weights[-1] if corrects else 0.0
    return bend - D * share, share


def _weights(places: list[float], h: float) -> list[float]:
    """Equation 5: weights that make the sum exact for polynomials of D up to their number.

    One estimate alone has weight 1/2, as its authors simplify.
    """
    if len(places) < 2:
        return [0.5] * len(places)
    phi, factorial, wanted = expm1(-h) / -h - 1, 1.0, []
    for n in range(1, len(places) + 1):
        wanted.append(phi * factorial / -h)
        factorial *= n + 1
        phi = phi / -h - 1 / factorial
    powers = np.vander(places, increasing=True).T
    solved: list[float] = np.linalg.solve(powers, wanted).tolist()
    return solved

"""DPM-Solver-fast: third order steps, and lower ones for what is left."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import exp, expm1, log, sqrt

import numpy as np

from farm.worker.samplers.algebra import A, B, D, Sum, X, Z
from farm.worker.samplers.course import Course, ancestral
from farm.worker.samplers.program import FRESH, Draw, Step


def dpm_fast(course: Course) -> Iterator[Step]:
    """DPM-Solver-fast (Lu et al. 2022, arXiv 2206.00927, section 3.4), ancestral as k-diffusion.

    Every call of the model counts as a step, and as there the last ends at the lowest positive
    noise level of the schedule.
    """
    calls = len(course.sigmas) - 1
    high = course.sigmas[0]
    low = course.sigmas[-2] if calls > 1 else course.model.smallest
    if low >= high:  # an image that begins with its last step
        yield course.step(high, D)
        return
    orders = [3] * (calls // 3 - 1) + [2, 1] if calls % 3 == 0 else [3] * (calls // 3) + [calls % 3]
    levels = np.exp(np.linspace(log(high), log(low), len(orders) + 1)).tolist()
    for order, (sigma, following) in zip(orders, pairwise(levels), strict=True):
        down, _ = ancestral(sigma, following, course.eta)
        down = max(down, levels[-1])
        up = sqrt(max(following**2 - down**2, 0.0)) if course.eta else 0.0
        rise = Z * (course.s_noise * up)
        yield from _dpm_solver(course, order, (sigma, down), rise)


def _dpm_solver(course: Course, order: int, span: tuple[float, float], rise: Sum) -> Iterator[Step]:
    """DPM-Solver-1, -2 (r₁ = 1/2) or -3 (r₁ = 1/3, r₂ = 2/3), in ``lambda = -log sigma``.

    Between calls A is the latent that the step began with, B its noise.
    """
    sigma, following = span
    h = log(sigma / following)
    last: Draw | None = FRESH if any(rise.weights) else None

    def level(r: float) -> float:
        return sigma * exp(-r * h)

    e = (X - D) / sigma
    if order == 1:
        yield course.step(sigma, X - e * (following * expm1(h)) + rise, draw=last)
        return
    r1 = 1 / order
    s1 = level(r1)
    yield course.step(sigma, X - e * (s1 * expm1(r1 * h)), a=X, b=e)
    e1 = (X - D) / s1
    if order == 2:
        x = A - B * (following * expm1(h)) - (e1 - B) * (following * expm1(h))
        yield course.step(s1, x + rise, draw=last)
        return
    r2 = 2 / 3
    s2 = level(r2)
    bend = expm1(r2 * h) / (r2 * h) - 1
    yield course.step(s1, A - B * (s2 * expm1(r2 * h)) - (e1 - B) * (s2 * r2 / r1 * bend))
    e2 = (X - D) / s2
    x = A - B * (following * expm1(h)) - (e2 - B) * (following / r2 * (expm1(h) / h - 1))
    yield course.step(s2, x + rise, draw=last)

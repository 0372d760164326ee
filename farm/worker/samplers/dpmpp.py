"""DPM-Solver++ without noise of its own: 2M, and the ancestral 2S."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import log, sqrt

from farm.worker.samplers.algebra import NOTHING, A, D, X, Z
from farm.worker.samplers.course import Course, ancestral
from farm.worker.samplers.program import FRESH, Step


def dpmpp_2m(course: Course) -> Iterator[Step]:
    """Algorithm 2 of Lu et al. 2022 (arXiv 2211.01095), in k-diffusion's variance exploding form.

    In ``lambda = -log sigma`` with ``h = lambda' - lambda``, one step is
    ``x' = exp(-h) x + (1 - exp(-h)) (D + h / 2h₁ (D - D₁))``, and ``exp(-h) = sigma' / sigma``.
    The first step has no estimate before it and the last no finite h: both go along ``D`` alone.
    """
    before = None
    for sigma, following in pairwise(course.sigmas):
        ratio = following / sigma
        h = -log(ratio) if following else None
        towards = D + (D - A) * (h / (2 * before)) if h and before else D
        yield course.step(sigma, X * ratio + towards * (1 - ratio), a=D)
        before = h


def dpmpp_2s_ancestral(course: Course) -> Iterator[Step]:
    """Algorithm 1 of Lu et al. 2022 (arXiv 2211.01095) with r = 1/2, down to below the next noise
    level, then noise back up to it."""
    for sigma, following in pairwise(course.sigmas):
        down, up = ancestral(sigma, following, course.eta)
        rise, draw = Z * (course.s_noise * up), FRESH if up else None
        if down == 0:
            yield course.step(sigma, D + rise, draw=draw)
            continue
        middle = sqrt(sigma * down)
        half, whole = middle / sigma, down / sigma
        yield course.step(sigma, X * half + D * (1 - half), a=X, whole=False)
        x = A * whole + D * (1 - whole) + rise
        yield course.step(middle, x, draw=draw, a=NOTHING)

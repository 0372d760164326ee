"""DPM-Solver-2 after k-diffusion, plain and ancestral."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import sqrt

from farm.worker.samplers.algebra import NOTHING, A, D, Sum, X, Z
from farm.worker.samplers.churned import churned
from farm.worker.samplers.course import Course, ancestral
from farm.worker.samplers.program import FRESH, Draw, Step


def dpm2(course: Course) -> Iterator[Step]:
    """DPM-Solver-2 (Lu et al. 2022, arXiv 2206.00927) with the churn of Karras et al. 2022."""
    for sigma, following, rise, draw in churned(course):
        yield from _midpoint(course, (sigma, following), rise, draw)


def dpm2_ancestral(course: Course) -> Iterator[Step]:
    """DPM-Solver-2 down to below the next noise level, then noise back up to it."""
    for sigma, following in pairwise(course.sigmas):
        down, up = ancestral(sigma, following, course.eta)
        rise = Z * (course.s_noise * up) if down else NOTHING
        yield from _midpoint(course, (sigma, down), rise, FRESH if up and down else None)


def _midpoint(
    course: Course, span: tuple[float, float], rise: Sum, draw: Draw | None
) -> Iterator[Step]:
    """One step along the slope halfway, by log sigma; to 0, where there is none, Euler."""
    sigma, following = span
    d = (X - D) / sigma
    if following == 0:
        yield course.step(sigma, X + d * (following - sigma) + rise, draw=draw)
        return
    middle = sqrt(sigma * following)
    yield course.step(sigma, X + d * (middle - sigma), a=X, whole=False)
    d = (X - D) / middle
    yield course.step(middle, A + d * (following - sigma) + rise, draw=draw, a=NOTHING)

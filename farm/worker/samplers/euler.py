"""Euler's method, plain and ancestral."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from farm.worker.samplers.algebra import D, U, X, Z
from farm.worker.samplers.churned import churned
from farm.worker.samplers.course import Course, ancestral
from farm.worker.samplers.program import FRESH, Step


def euler(course: Course) -> Iterator[Step]:
    """Algorithm 2 of Karras et al. 2022 (arXiv 2206.00364) without its correction.

    The slope at sigma is ``d = (x - D) / sigma``, the step ``x' = x + (sigma' - sigma) d``.
    """
    for sigma, following, rise, draw in churned(course):
        d = (X - D) / sigma
        yield course.step(sigma, X + d * (following - sigma) + rise, draw=draw)


def euler_ancestral(course: Course) -> Iterator[Step]:
    """Euler down to below the next noise level, then noise back up to it.

    With eta 0 to 1 this is DDIM too (Song et al. 2020, arXiv 2010.02502, equation 12), written
    for latents that are not scaled down: ``x = x_ddim / sqrt(alpha)``.
    """
    for sigma, following in pairwise(course.sigmas):
        down, up = ancestral(sigma, following, course.eta)
        d = (X - D) / sigma
        x = X + d * (down - sigma) + Z * (course.s_noise * up)
        yield course.step(sigma, x, draw=FRESH if up else None)


def euler_ancestral_cfg_pp(course: Course) -> Iterator[Step]:
    """CFG++ (Chung et al. 2024, arXiv 2406.08070): away from the guided estimate, the noise is
    what the negative prompt's estimate leaves, so that little guidance is enough."""
    for sigma, following in pairwise(course.sigmas):
        down, up = ancestral(sigma, following, course.eta)
        d = (X - U) / sigma
        x = D + d * down + Z * (course.s_noise * up)
        yield course.step(sigma, x, draw=FRESH if up else None)

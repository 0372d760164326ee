"""DPM-Solver++ for the stochastic equation, with noise of one Brownian path (k-diffusion)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import exp, expm1, log, sqrt

from farm.worker.samplers.algebra import NOTHING, A, B, D, Sum, X, Z
from farm.worker.samplers.course import Course, ancestral
from farm.worker.samplers.program import Draw, Step


def dpmpp_sde(course: Course) -> Iterator[Step]:
    """Singlestep with r = 1/2: an ancestral step halfway, then a whole one along its estimate."""
    for sigma, following in pairwise(course.sigmas):
        if following == 0:
            yield course.step(sigma, D)
            continue
        middle = sqrt(sigma * following)
        down, up = ancestral(sigma, middle, course.eta)
        x = X * (down / sigma) + D * (1 - down / sigma) + Z * (course.s_noise * up)
        draw = Draw((sigma, middle)) if up else None
        yield course.step(sigma, x, draw=draw, a=X, whole=False)
        down, up = ancestral(sigma, following, course.eta)
        x = A * (down / sigma) + D * (1 - down / sigma) + Z * (course.s_noise * up)
        draw = Draw((sigma, following)) if up else None
        yield course.step(middle, x, draw=draw, a=NOTHING)


def dpmpp_2m_sde(course: Course) -> Iterator[Step]:
    """Multistep of order 2 (Lu et al. 2022, arXiv 2211.01095), solved at the midpoint."""
    return _dpmpp_2m_sde(course, heun=False)


def dpmpp_2m_sde_heun(course: Course) -> Iterator[Step]:
    """Multistep of order 2, solved as Heun would."""
    return _dpmpp_2m_sde(course, heun=True)


def _dpmpp_2m_sde(course: Course, *, heun: bool) -> Iterator[Step]:
    """In ``lambda = -log sigma``, where ``h`` grows to ``k = h (1 + eta)`` with the noise."""
    before = None
    for sigma, following in pairwise(course.sigmas):
        if following == 0:
            yield course.step(sigma, D)
            continue
        h = log(sigma / following)
        k = h * (1 + course.eta)
        x = X * exp(-k) - D * expm1(-k)
        if before:
            weight = 1 + expm1(-k) / k if heun else -expm1(-k) / 2
            x += (D - A) * (weight * h / before)
        yield _noised(course, sigma, following, x)
        before = h


def dpmpp_3m_sde(course: Course) -> Iterator[Step]:
    """Multistep of order 3: derivatives of ``D`` from the differences of three estimates."""
    h1 = h2 = None
    for sigma, following in pairwise(course.sigmas):
        if following == 0:
            yield course.step(sigma, D)
            continue
        h = log(sigma / following)
        k = h * (1 + course.eta)
        x = X * exp(-k) - D * expm1(-k)
        phi_2 = 1 + expm1(-k) / k
        phi_3 = phi_2 / k - 0.5
        if h1 and h2:
            r0, r1 = h1 / h, h2 / h
            recent, older = (D - A) / r0, (A - B) / r1
            first = recent + (recent - older) * (r0 / (r0 + r1))
            second = (recent - older) / (r0 + r1)
            x += first * phi_2 - second * phi_3
        elif h1:
            x += (D - A) * (phi_2 * h / h1)
        yield _noised(course, sigma, following, x)
        h1, h2 = h, h1


def _noised(course: Course, sigma: float, following: float, x: Sum) -> Step:
    """With the noise that the way down has lost, and the last two estimates remembered."""
    lost = -expm1(-2 * log(sigma / following) * course.eta)
    x += Z * (course.s_noise * following * sqrt(lost))
    draw = Draw((sigma, following)) if lost else None
    return course.step(sigma, x, draw=draw, a=D, b=A)

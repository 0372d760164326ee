"""Heun's method, and restarts of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from farm.worker.samplers.algebra import NOTHING, A, D, Sum, X, Z
from farm.worker.samplers.churned import churned, jumps
from farm.worker.samplers.course import Course
from farm.worker.samplers.program import FRESH, Draw, Step
from farm.worker.samplers.schedules import Span, karras


def heun(course: Course) -> Iterator[Step]:
    """Algorithm 2 of Karras et al. 2022 (arXiv 2206.00364)."""
    for sigma, following, rise, draw in churned(course):
        yield from _heun(course, (sigma, following), rise, draw)


def restart(course: Course) -> Iterator[Step]:
    """Restart sampling (Xu et al. 2023, arXiv 2306.14878): some way back up, and down again.

    Where and how often is webui's choice, see :func:`_restarted`.
    """
    for sigma, following, up in jumps(_restarted(course)):
        rise = Z * (course.s_noise * up)
        yield from _heun(course, (sigma, following), rise, FRESH if up else None)


def _heun(
    course: Course, span: tuple[float, float], rise: Sum, draw: Draw | None
) -> Iterator[Step]:
    """One step along the mean of the slopes at both ends; to 0, where there is none, Euler."""
    sigma, following = span
    d = (X - D) / sigma
    across = following - sigma
    if following == 0:
        yield course.step(sigma, X + d * across + rise, draw=draw)
        return
    yield course.step(sigma, X + d * across, a=X + d * (across / 2), whole=False)
    d = (X - D) / following
    yield course.step(following, A + d * (across / 2) + rise, draw=draw, a=NOTHING)


def _restarted(course: Course) -> list[tuple[float, float]]:
    """The spans to step over: Karras's schedule, restarted from 2 whenever it comes near 0.1.

    Of 20 steps and more 9 go into one restart, of 36 and more a quarter into each of two.
    """
    steps = len(course.sigmas) - 1
    if steps < 20:
        return list(pairwise(course.sigmas))
    length, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    span = Span(course.sigmas[-2], course.sigmas[0])
    sigmas = karras(course.model, steps - length * times, span)
    bottom, top = _nearest(sigmas, 0.1), _nearest(sigmas, 2.0)
    spans = list(pairwise(sigmas))
    if top >= bottom:
        return spans
    again = karras(course.model, length + 1, Span(sigmas[bottom], sigmas[top]))[:-1]
    return spans[:bottom] + list(pairwise(again)) * times + spans[bottom:]


def _nearest(sigmas: list[float], level: float) -> int:
    return min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - level))

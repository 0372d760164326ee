"""Linear multistep methods: Adams-Bashforth on uneven noise levels, and PLMS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod, sqrt

from farm.worker.samplers.algebra import A, B, C, D, Sum, X
from farm.worker.samplers.course import Course
from farm.worker.samplers.program import Step


def lms(course: Course) -> Iterator[Step]:
    """Order 4: integrates the polynomial through the last four slopes, as k-diffusion."""
    for i, (sigma, following) in enumerate(pairwise(course.sigmas)):
        d = (X - D) / sigma
        known = course.sigmas[i::-1][:4]
        slopes = zip(_integrals(known, following), (d, A, B, C), strict=False)
        yield course.step(sigma, sum((s * w for w, s in slopes), X), a=d, b=A, c=B)


def plms(course: Course) -> Iterator[Step]:
    """Pseudo linear multistep (Liu et al. 2022, arXiv 2202.09778), as in latent diffusion.

    Slopes are weighted as if the noise levels were even; the first step is one of Heun's.
    """
    for i, (sigma, following) in enumerate(pairwise(course.sigmas)):
        d = (X - D) / sigma
        across = following - sigma
        if i == 0 and following > 0:
            yield course.step(sigma, X + d * across, a=d, b=X + d * (across / 2), whole=False)
            ahead = (X - D) / following
            yield course.step(following, B + ahead * (across / 2))
        else:
            yield course.step(sigma, X + _adams_bashforth(i, d) * across, a=d, b=A, c=B)


def _adams_bashforth(i: int, d: Sum) -> Sum:
    """The mean slope of step i by itself and up to three before it."""
    match i:
        case 0:
            return d
        case 1:
            return (d * 3 - A) / 2
        case 2:
            return (d * 23 - A * 16 + B * 5) / 12
        case _:
            return (d * 55 - A * 59 + B * 37 - C * 9) / 24


def _integrals(known: Sequence[float], following: float) -> list[float]:
    """What each known slope adds: its Lagrange polynomial from ``known[0]`` to ``following``.

    Two Gauss points integrate a cubic exactly.
    """
    middle, half = (following + known[0]) / 2, (following - known[0]) / 2
    points = (middle - half / sqrt(3), middle + half / sqrt(3))
    return [
        half * sum(prod((p - o) / (own - o) for o in known if o != own) for p in points)
        for own in known
    ]

"""Steps that begin with a little more noise than the last one ended with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, zip_longest
from math import sqrt

from farm.worker.samplers.algebra import NOTHING, Sum, Z
from farm.worker.samplers.course import Course
from farm.worker.samplers.program import FRESH, Draw


def churned(course: Course) -> Iterator[tuple[float, float, Sum, Draw | None]]:
    """For each step its churned noise level, the one to step to, and the next step's churn.

    An update comes after a call of the model, so the noise before a step is added at the end of
    the step before it; for the first step see :func:`first_churn`. As in k-diffusion a sampler
    with churn draws noise for every step, wanted or not.
    """
    levels = course.churn.levels(course.sigmas)
    for sigma, following, then in zip_longest(levels, course.sigmas[1:], levels[1:]):
        if then is None or not course.churn.amount:
            yield sigma, following, NOTHING, None
        else:
            yield sigma, following, Z * (course.s_noise * sqrt(then**2 - following**2)), FRESH


def first_churn(course: Course) -> float | None:
    """What to add to the latent before the first step, as a multiple of fresh noise."""
    if not course.churn.amount:
        return None
    churned_level = course.churn.levels(course.sigmas)[0]
    return course.s_noise * sqrt(churned_level**2 - course.sigmas[0] ** 2)


def jumps(spans: list[tuple[float, float]]) -> Iterator[tuple[float, float, float]]:
    """For each span its ends, and the noise that leads up from it to where the next begins."""
    for (sigma, following), (then, _) in pairwise([*spans, (0.0, 0.0)]):
        yield sigma, following, sqrt(max(then**2 - following**2, 0.0))

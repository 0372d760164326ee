"""DPM-Solver++(2M), known as "DPM++ 2M"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import log

from farm.worker.samplers.program import Coefficients


def dpmpp_2m(sigmas: Sequence[float]) -> list[Coefficients]:
    """Algorithm 2 of Lu et al. 2022 (arXiv 2211.01095), in k-diffusion's variance exploding form.

    In ``lambda = -log sigma`` with ``h = lambda' - lambda``, one step is
    ``x' = exp(-h) x + (1 - exp(-h)) ((1 + w) D - w D₁)``, ``w = h / (2 h_before)``, and
    ``exp(-h) = sigma' / sigma``. The first step has no estimate before it and the last no finite
    h: both take ``w = 0``.
    """
    updates = []
    h_before = None
    for sigma, following in pairwise(sigmas):
        ratio = following / sigma
        h = -log(ratio) if following > 0 else None
        w = h / (2 * h_before) if h and h_before else 0.0
        updates.append(
            Coefficients(x=ratio, denoised=(1 - ratio) * (1 + w), previous=-(1 - ratio) * w)
        )
        h_before = h
    return updates

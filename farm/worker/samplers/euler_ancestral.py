"""Euler ancestral, known as "Euler a"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt

from farm.worker.samplers.program import Coefficients


def euler_ancestral(sigmas: Sequence[float]) -> list[Coefficients]:
    """Euler down to below the next sigma, then noise back up to it (k-diffusion's eta 1).

    The noise has the variance of the ancestral step of Ho et al. 2020 (arXiv 2006.11239):
    ``up² = sigma'² (sigma² - sigma'²) / sigma²``, and ``down² + up² = sigma'²``.
    """
    updates = []
    for sigma, following in pairwise(sigmas):
        up = following * sqrt(sigma**2 - following**2) / sigma
        down = following**2 / sigma
        updates.append(Coefficients(x=down / sigma, denoised=1 - down / sigma, noise=up))
    return updates

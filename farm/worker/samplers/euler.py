"""Euler."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from farm.worker.samplers.program import Coefficients


def euler(sigmas: Sequence[float]) -> list[Coefficients]:
    """Algorithm 2 of Karras et al. 2022 (arXiv 2206.00364) without churn and correction.

    The slope at sigma is ``d = (x - D) / sigma`` and the step ``x' = x + (sigma' - sigma) d``.
    With ``ratio = sigma' / sigma`` that is ``x' = ratio x + (1 - ratio) D``.
    """
    ratios = [following / sigma for sigma, following in pairwise(sigmas)]
    return [Coefficients(x=ratio, denoised=1 - ratio) for ratio in ratios]

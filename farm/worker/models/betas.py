"""How much of the picture is left at each training timestep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import Any

from farm.errors import CheckpointError

TRAINED_STEPS = 1000


LEAST = 2.0**-24
"""Signal at the last timestep where none is meant to be left: its sigma, 4096, is finite."""


def alphas_cumprod(scheduler: Mapping[str, Any], *, zero_snr: bool = False) -> list[float]:
    """The cumulative product of ``1 - beta`` over 1000 timesteps, in float64.

    Args:
        scheduler: a diffusers scheduler config; what it leaves out is Stable Diffusion's own,
            ``scaled_linear`` from 0.00085 to 0.012 (https://arxiv.org/abs/2112.10752).
        zero_snr: stretch them until nothing of the picture is left at the last timestep
            (https://arxiv.org/abs/2305.08891), as ``rescale_betas_zero_snr`` does.

    Raises:
        CheckpointError: another beta schedule or number of timesteps.
    """
    kind = scheduler.get("beta_schedule", "scaled_linear")
    steps = scheduler.get("num_train_timesteps", TRAINED_STEPS)
    start, end = scheduler.get("beta_start", 0.00085), scheduler.get("beta_end", 0.012)
    if kind not in ("scaled_linear", "linear") or steps != TRAINED_STEPS:
        raise CheckpointError(
            f"The scheduler config asks for {steps} timesteps of {kind!r} betas.",
            field="checkpoint",
            value=kind,
            remedy=f"This version knows linear and scaled_linear, {TRAINED_STEPS} timesteps.",
        )
    if kind == "linear":
        betas = _evenly(float(start), float(end))
    else:
        betas = [root**2 for root in _evenly(math.sqrt(start), math.sqrt(end))]
    alphas = list(accumulate((1.0 - beta for beta in betas), mul))
    return _stretched(alphas) if zero_snr or scheduler.get("rescale_betas_zero_snr") else alphas


def _stretched(alphas: list[float]) -> list[float]:
    """Amplitudes moved so that the last is zero, and scaled so that the first stays."""
    first, last = math.sqrt(alphas[0]), math.sqrt(alphas[-1])
    scale = first / (first - last)
    moved = [((math.sqrt(alpha) - last) * scale) ** 2 for alpha in alphas]
    return [*moved[:-1], LEAST]


def _evenly(first: float, last: float) -> list[float]:
    return [first + (last - first) * i / (TRAINED_STEPS - 1) for i in range(TRAINED_STEPS)]

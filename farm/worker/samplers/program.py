"""What a sampler compiles to: a table of numbers that the engine can run beside other tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Coefficients(NamedTuple):
    """One update, ``x' = x·x_ + denoised·D + previous·D₁ + noise·z``, where ``x_`` is the latent
    now, ``D`` the model's estimate of the clean latent, ``D₁`` its estimate one step ago (zero
    before the first step) and ``z`` fresh standard normal noise.

    Every k-diffusion sampler that is not adaptive is such a sum; one that needs an older
    estimate or a saved latent adds a field here and a register in the engine.
    """

    x: float
    denoised: float
    previous: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model and the update after it.

    Attributes:
        sigma: noise level of the latent that the model sees, > 0.
        t: the training timestep of that noise level, fractional, 0..999.
        update: how the next latent follows from it.
    """

    sigma: float
    t: float
    update: Coefficients


@dataclass(frozen=True, slots=True)
class Program:
    """A sampler, a schedule and a number of steps, compiled.

    Attributes:
        name: the sampler's name as people know it.
        steps: at least one; the last ends at sigma 0, that is, at a clean latent.
        initial_scale: what standard normal noise is multiplied with to start.
    """

    name: str
    steps: tuple[Step, ...]
    initial_scale: float

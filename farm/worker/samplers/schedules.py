"""Sigma schedules: which noise levels a sampler visits, from the highest down to 0.

Each takes the model, a number of steps and the span to cover, and returns that many noise levels
and the 0 behind them. Names and habits are webui's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from farm.worker.samplers.model_sigmas import ModelSigmas


class Span(NamedTuple):
    """The noise levels to cover, and the exponent of schedules that have one (None: theirs)."""

    low: float
    high: float
    rho: float | None = None


Schedule: TypeAlias = Callable[[ModelSigmas, int, Span], list[float]]


def uniform(model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """Evenly spaced timesteps, both ends included: k-diffusion's and webui's default."""
    return _of_timesteps(model, np.linspace(*_timesteps(model, span), steps))


def sgm_uniform(model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """Evenly spaced timesteps without the lowest, as in Stability's generative-models."""
    return _of_timesteps(model, np.linspace(*_timesteps(model, span), steps, endpoint=False))


def simple(model: ModelSigmas, steps: int, _span: Span) -> list[float]:
    """Trained timesteps picked from the last one down, at even distances, rounded up.

    More steps than there are timesteps lie between them.
    """
    count = model.last_timestep + 1
    if steps > count:
        return uniform(model, steps, Span(model.smallest, model.largest))
    return _of_timesteps(model, (count - 1 - int(i * count / steps) for i in range(steps)))


def ddim(model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """Every (1000 / steps)th timestep from 1 up, as the first DDIM for latent diffusion.

    Where webui takes more steps than asked, as 1000 does not divide by them, these are spread
    evenly instead; and a single step begins at the top, not at timestep 1. Hundreds of steps lie
    between timesteps.
    """
    count = model.last_timestep + 1
    if steps == 1 or steps > count / 2:
        return uniform(model, steps, span)
    return _of_timesteps(model, (1 + i * count // steps for i in reversed(range(steps))))


def karras(_model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """Equation 5 of Karras et al. 2022 (arXiv 2206.00364), rho 7."""
    rho = span.rho or 7.0
    roots = np.linspace(span.high ** (1 / rho), span.low ** (1 / rho), steps)
    return _ended(roots**rho)


def exponential(model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """Evenly spaced log sigmas."""
    return polyexponential(model, steps, span._replace(rho=1.0))


def polyexponential(_model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """A polynomial in log sigma of degree rho, 1 by default, as k-diffusion's."""
    ramp = np.linspace(1, 0, steps) ** (span.rho or 1.0)
    low, high = np.log(span.low), np.log(span.high)
    return _ended(np.exp(low + ramp * (high - low)))


def beta(_model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """Quantiles of the Beta(0.6, 0.6) distribution (Lee et al. 2024, arXiv 2407.12173).

    As in webui and diffusers they are shares of the span of sigmas; the paper's are timesteps.
    """
    return _ended(span.low + _beta_quantiles(np.linspace(1, 0, steps)) * (span.high - span.low))


_ALIGNED = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}


def align_your_steps(model: ModelSigmas, steps: int, _span: Span) -> list[float]:
    """The tables of Sabour et al. 2024 (arXiv 2404.14507), log-linear between their 11 levels."""
    table = _ALIGNED["sdxl" if model.family in ("sdxl", "sdxl-refiner", "ssd1b") else "sd"]
    places = np.linspace(0, len(table) - 1, steps)
    return _ended(np.exp(np.interp(places, np.arange(len(table)), np.log(table))))


def lcm(model: ModelSigmas, steps: int, _span: Span) -> list[float]:
    """Evenly spaced over the 50 timesteps that latent consistency models learnt."""
    taught = consistency_timesteps(model)
    levels = np.log([model.sigma(t) for t in taught])
    return _ended(np.exp(np.interp(np.linspace(taught[-1], taught[0], steps), taught, levels)))


def tcd(model: ModelSigmas, steps: int, _span: Span) -> list[float]:
    """Picked from the same 50 from the last one down, and to the lowest trained level, not 0.

    More steps than that lie between them.
    """
    taught = consistency_timesteps(model)[::-1]
    if steps > len(taught):
        timesteps = np.linspace(taught[0], 0, steps, endpoint=False)
    else:
        timesteps = taught[np.linspace(0, len(taught), steps, endpoint=False).astype(int)]
    return [*_of_timesteps(model, timesteps)[:-1], model.smallest]


def unipc(model: ModelSigmas, steps: int, span: Span) -> list[float]:
    """Evenly spaced timesteps down to the lowest trained level, not 0, as UniPC's authors."""
    return [*sgm_uniform(model, steps, span)[:-1], span.low]


def consistency_timesteps(model: ModelSigmas) -> NDArray[np.float64]:
    """The 50 timesteps that consistency models are distilled at, rising."""
    count = int(model.last_timestep) + 1
    apart = count // 50
    return np.arange(apart - 1, count, apart, dtype=np.float64)


SCHEDULES: dict[str, Schedule] = {
    "uniform": uniform,
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim": ddim,
    "beta": beta,
    "align_your_steps": align_your_steps,
    "lcm": lcm,
    "tcd": tcd,
    "unipc": unipc,
}


def _timesteps(model: ModelSigmas, span: Span) -> tuple[float, float]:
    return model.timestep(span.high), model.timestep(span.low)


def _of_timesteps(model: ModelSigmas, timesteps: Iterable[float]) -> list[float]:
    return [model.sigma(t) for t in timesteps] + [0.0]


def _ended(sigmas: NDArray[np.float64]) -> list[float]:
    return [*sigmas.tolist(), 0.0]


def _beta_quantiles(shares: NDArray[np.float64], shape: float = 0.6) -> NDArray[np.float64]:
    """Where the distribution function of Beta(shape, shape) reaches ``shares``, by bisection.

    Below 1/2 the function is a power series that halves with every term, and above it mirrors.
    """
    n = np.arange(64)
    factors = np.cumprod(np.concatenate([[1.0], (n[1:] - shape) / n[1:]])) / (shape + n)

    def area(x: NDArray[np.float64]) -> NDArray[np.float64]:
        terms: NDArray[np.float64] = factors * x[:, None] ** n
        under: NDArray[np.float64] = x**shape * terms.sum(axis=1)
        return under

    half = area(np.array([0.5]))
    lower = np.minimum(shares, 1 - shares)
    low, high = np.zeros_like(lower), np.full_like(lower, 0.5)
    for _ in range(60):
        middle = (low + high) / 2
        below = area(middle) < 2 * lower * half
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    found = np.where(lower > 0, (low + high) / 2, 0.0)
    return np.where(shares <= 0.5, found, 1 - found)

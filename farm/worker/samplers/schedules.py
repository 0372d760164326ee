"""Sigma schedules: which noise levels a sampler visits, from the highest down to 0.

Everything follows Karras et al. 2022 (arXiv 2206.00364), where a latent at noise level sigma
is ``clean + sigma * normal noise``, and k-diffusion's reading of it for discrete models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farm.errors import CheckpointError


class ModelSigmas:
    """The noise levels a model was trained on, and timesteps as a continuous scale over them.

    Args:
        alphas_cumprod: cumulative signal power of each training timestep, falling,
            each in (0, 1).

    Raises:
        CheckpointError: they do not fall, or leave (0, 1).
    """

    def __init__(self, alphas_cumprod: Sequence[float]) -> None:
        alphas = np.asarray(alphas_cumprod, dtype=np.float64)
        if len(alphas) < 2 or not (
            alphas[-1] > 0 and alphas[0] < 1 and np.all(np.diff(alphas) < 0)
        ):
            raise CheckpointError(
                f"The checkpoint's noise schedule of {len(alphas)} timesteps is unusable: "
                "the signal must fall from timestep to timestep, between 1 and 0.",
                field="checkpoint",
                remedy="Check that its configuration belongs to it.",
            )
        self._log_sigmas = np.log((1 - alphas) / alphas) / 2
        self._timesteps = np.arange(len(alphas), dtype=np.float64)

    @property
    def smallest(self) -> float:
        return self.sigma(self._timesteps[0])

    @property
    def largest(self) -> float:
        return self.sigma(self._timesteps[-1])

    @property
    def last_timestep(self) -> float:
        return float(self._timesteps[-1])

    def sigma(self, t: float) -> float:
        """The noise level of a timestep, which may lie between two trained ones."""
        return float(np.exp(np.interp(t, self._timesteps, self._log_sigmas)))

    def timestep(self, sigma: float) -> float:
        """The fractional timestep of a noise level; outside the trained range, its nearest end."""
        return float(np.interp(np.log(sigma), self._log_sigmas, self._timesteps))


def uniform(model: ModelSigmas, steps: int) -> list[float]:
    """Evenly spaced timesteps, last to first, as k-diffusion's and webui's default. Ends in 0."""
    return [model.sigma(t) for t in np.linspace(model.last_timestep, 0, steps)] + [0.0]


def karras(model: ModelSigmas, steps: int, rho: float = 7.0) -> list[float]:
    """Equation 5 of Karras et al. 2022, over the model's own range of sigmas. Ends in 0."""
    high, low = model.largest ** (1 / rho), model.smallest ** (1 / rho)
    return [float(root**rho) for root in np.linspace(high, low, steps)] + [0.0]


def exponential(model: ModelSigmas, steps: int) -> list[float]:
    """Evenly spaced log sigmas over the model's own range. Ends in 0."""
    high, low = np.log(model.largest), np.log(model.smallest)
    return [float(sigma) for sigma in np.exp(np.linspace(high, low, steps))] + [0.0]

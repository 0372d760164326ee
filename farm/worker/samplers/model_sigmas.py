"""Which noise levels a model knows.

Everything follows Karras et al. 2022 (arXiv 2206.00364), where a latent at noise level sigma
is ``clean + sigma * normal noise``, and k-diffusion's reading of it for discrete models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from farm.errors import CheckpointError

LAST_SIGNAL = 4.8973451890853435e-08
"""Signal power that webui leaves at the last timestep of a zero-terminal-SNR schedule."""


class ModelSigmas:
    """The noise levels a model was trained on, and timesteps as a continuous scale over them.

    Args:
        alphas_cumprod: cumulative signal power of each training timestep, falling,
            each in (0, 1).
        family: of the model, such as ``sd15``.

    Raises:
        CheckpointError: they do not fall, or leave (0, 1).
    """

    def __init__(self, alphas_cumprod: Sequence[float], family: str = "sd15") -> None:
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
        self.family = family
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


def zero_terminal_snr(alphas_cumprod: Sequence[float]) -> list[float]:
    """The schedule stretched until nothing of the picture is left at its last timestep.

    Algorithm 1 of Lin et al. 2023 (arXiv 2305.08891): the square roots are shifted and scaled so
    that the last is 0 and the first stays. The last then gets webui's tiny remainder, as a noise
    level must be finite.
    """
    roots = np.sqrt(np.asarray(alphas_cumprod, dtype=np.float64))
    stretched = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return [*(stretched[:-1] ** 2).tolist(), LAST_SIGNAL]

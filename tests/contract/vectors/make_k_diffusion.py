"""Writes k_diffusion.npz: what k-diffusion's samplers do in the analytic world, in float64, at
every call of the model.

k-diffusion needs wandb, kornia, clip and a dozen more packages, so the suite compares with what
it once computed instead of installing it. To compute it again::

    pip install k-diffusion==0.1.1.post1
    python -m tests.contract.vectors.make_k_diffusion
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from k_diffusion import external, sampling

from tests.analytic import BEGUN, denoised, fresh, path
from tests.fake_models import ALPHAS

STEPS = (1, 2, 3, 20, 150)
SLICES = ((20, 19), (20, 18), (20, 17), (30, 10), (150, 147))
"""(steps, of which so many are skipped), for images that begin with a latent."""
LOWEST = ((1 - ALPHAS[0]) / ALPHAS[0]) ** 0.5
CHURN = {"s_churn": 20.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}
SDE = {"eta": 0.7, "s_noise": 1.01}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: (function, schedule, arguments)
    "Euler": ("euler", "uniform", {}),
    "Euler churn": ("euler", "uniform", CHURN),
    "Euler a": ("euler_ancestral", "uniform", {}),
    "Euler a eta": ("euler_ancestral", "uniform", {"eta": 0.7}),
    "Heun": ("heun", "uniform", {}),
    "Heun churn": ("heun", "karras", CHURN | {"s_tmax": 1000.0}),
    "DPM2": ("dpm_2", "discard", {}),
    "DPM2 churn": ("dpm_2", "discard", CHURN),
    "DPM2 Karras": ("dpm_2", "discard karras", {}),
    "DPM2 a": ("dpm_2_ancestral", "discard", {}),
    "DPM2 a eta": ("dpm_2_ancestral", "discard", SDE),
    "DPM2 a Karras": ("dpm_2_ancestral", "discard karras", {}),
    "LMS": ("lms", "uniform", {}),
    "LMS Karras": ("lms", "karras", {}),
    "DPM++ 2S a": ("dpmpp_2s_ancestral", "uniform", {}),
    "DPM++ 2S a Karras": ("dpmpp_2s_ancestral", "karras", SDE),
    "DPM++ 2M": ("dpmpp_2m", "uniform", {}),
    "DPM++ 2M Karras": ("dpmpp_2m", "karras", {}),
    "DPM++ SDE": ("dpmpp_sde", "uniform", {}),
    "DPM++ SDE Karras": ("dpmpp_sde", "karras", SDE),
    "DPM++ 2M SDE": ("dpmpp_2m_sde", "uniform", {}),
    "DPM++ 2M SDE Karras": ("dpmpp_2m_sde", "karras", SDE),
    "DPM++ 2M SDE Exponential": ("dpmpp_2m_sde", "exponential", {"eta": 0.0}),
    "DPM++ 2M SDE Heun": ("dpmpp_2m_sde", "uniform", {"solver_type": "heun"}),
    "DPM++ 2M SDE Heun Karras": ("dpmpp_2m_sde", "karras", SDE | {"solver_type": "heun"}),
    "DPM++ 2M SDE Heun Exponential": ("dpmpp_2m_sde", "exponential", {"solver_type": "heun"}),
    "DPM++ 3M SDE": ("dpmpp_3m_sde", "discard", {}),
    "DPM++ 3M SDE Karras": ("dpmpp_3m_sde", "discard karras", {}),
    "DPM++ 3M SDE Exponential": ("dpmpp_3m_sde", "discard exponential", SDE),
    "DPM fast": ("dpm_fast", "uniform", {"eta": 1.0}),
    "DPM fast eta": ("dpm_fast", "uniform", SDE),
    "DPM fast plain": ("dpm_fast", "uniform", {"eta": 0.0}),
    "DPM adaptive": ("dpm_adaptive", "uniform", {"eta": 1.0}),
    "DPM adaptive eta": ("dpm_adaptive", "uniform", {"eta": 0.4}),
    "DPM adaptive plain": ("dpm_adaptive", "uniform", {"eta": 0.0}),
}


def schedule(name: str, steps: int) -> torch.Tensor:
    if name.startswith("discard"):
        rest = schedule(name.removeprefix("discard").strip() or "uniform", steps + 1)
        return torch.cat([rest[:-2], rest[-1:]])
    alphas = torch.tensor(ALPHAS)
    model = external.DiscreteSchedule(((1 - alphas) / alphas) ** 0.5, quantize=False)
    if name == "uniform":
        return model.get_sigmas(steps)
    function = getattr(sampling, f"get_sigmas_{name}")
    return function(steps, model.sigma_min.item(), model.sigma_max.item())


def trajectory(
    function: str, sigmas: torch.Tensor, arguments: dict[str, Any], begun: Any = 0.0
) -> np.ndarray:
    """The latents that the model sees, one row a call, and the last one."""
    seen: list[np.ndarray] = []
    draws = count(1)

    def model(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(x[0].numpy())
        return torch.from_numpy(denoised(x[0].numpy(), sigma.item()))[None]

    sampling.torch.randn_like = lambda x: torch.from_numpy(fresh(next(draws)))[None]
    if function.endswith("_sde"):
        arguments = arguments | {
            "noise_sampler": lambda s0, s1: torch.from_numpy(path(float(s0), float(s1)))[None]
        }
    x = begun + torch.from_numpy(fresh(0))[None] * sigmas[0]
    sample = getattr(sampling, f"sample_{function}")
    if function == "dpm_fast":
        x = sample(model, x, LOWEST, sigmas[0].item(), len(sigmas) - 1, disable=True, **arguments)
    elif function == "dpm_adaptive":
        x = sample(model, x, LOWEST, sigmas[0].item(), disable=True, **arguments)
    else:
        x = sample(model, x, sigmas, disable=True, **arguments)
    return np.stack([*seen, x[0].numpy()])


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # k-diffusion rounds timesteps to float32
    found = {}
    for name, (function, levels, arguments) in CASES.items():
        for steps in STEPS:
            # k-diffusion's multistep SDE samplers cannot take a single step, and one sampler
            # decides their number itself.
            alone = {"dpm_adaptive": steps == 20, "dpmpp_2m_sde": steps > 1}
            if alone.get(function.replace("3m", "2m"), True):
                rows = trajectory(function, schedule(levels, steps), arguments)
                found[f"{name}/{steps}"] = rows
        for steps, skipped in SLICES:
            # Nor can these take a last step alone.
            if steps - skipped > 1 or function[:5] not in ("dpm_f", "dpm_a", "dpmpp"):
                sigmas = schedule(levels, steps)[skipped:]
                begun = torch.from_numpy(BEGUN)[None]
                rows = trajectory(function, sigmas, arguments, begun)
                found[f"{name}/{steps}-{skipped}"] = rows
    np.savez_compressed(Path(__file__).with_name("k_diffusion.npz"), **found)


if __name__ == "__main__":
    main()

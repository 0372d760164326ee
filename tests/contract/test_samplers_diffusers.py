"""Samplers that k-diffusion does not have, against diffusers' schedulers.

All in float64, in the analytic world of ``tests/analytic.py``, at every call of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, TCDScheduler, UniPCMultistepScheduler
from numpy.typing import NDArray

from farm.spec.sampling import SamplingOptions
from farm.worker.samplers import Program, compile_program
from farm.worker.samplers.model_sigmas import ModelSigmas
from tests.analytic import BEGUN, denoised, fresh, run
from tests.fake_models import ALPHAS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MODEL = ModelSigmas(ALPHAS)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = BETAS | {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": True}
STEPS = [1, 2, 3, 20, 150]
ALONE = {DDIMScheduler: {"clip_sample": False}, PNDMScheduler: {"skip_prk_steps": True}}
"""How the first authors had them."""
Latents = NDArray[np.float64]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = map(fresh, count(1))
    for module in ("ddim", "tcd"):
        monkeypatch.setattr(
            f"diffusers.schedulers.scheduling_{module}.randn_tensor",
            lambda *_, **__: torch.from_numpy(next(draws)).view(1, 1, -1),
        )


def compiled(name: str, steps: int, skipped: int | None = None, **options: Any) -> Program:
    return compile_program(name, steps, ALPHAS, options=SamplingOptions(**options), skipped=skipped)


def scheduled(
    scheduler: Any,
    begun: Latents | None = None,
    level: Callable[[float], float] = MODEL.sigma,
    **options: Any,
) -> Latents:
    """The latents a diffusers scheduler visits, which scales them to variance 1.

    Args:
        level: the noise level of one of its timesteps.
    """
    timesteps = range(scheduler.config.num_train_timesteps)
    scheduler.alphas_cumprod = torch.tensor([1 / (level(t) ** 2 + 1) for t in timesteps])
    x = fresh(0)
    if begun is not None:
        sigma = level(scheduler.timesteps[0].item())
        x = (begun + x * sigma) / (sigma**2 + 1) ** 0.5
    seen = []
    for t in scheduler.timesteps:
        sigma = level(t.item())
        scale = (sigma**2 + 1) ** 0.5
        seen.append(x * scale)
        noise = (x * scale - denoised(x * scale, sigma)) / sigma
        output, sample = (torch.from_numpy(row).view(1, 1, -1) for row in (noise, x))
        x = scheduler.step(output, t, sample, **options).prev_sample[0, 0].numpy()
    return np.stack([*seen, x])


def along(program: Program, scheduler: Any, **options: Any) -> Latents:
    """:func:`scheduled`, at any timesteps: where 1000 does not divide by the steps, diffusers
    leaves out the highest, so it is given a model that knows those of the program alone."""
    known = sorted({step.t for step in program.steps})
    count = {"num_train_timesteps": len(known), "timestep_spacing": "leading"}
    made = scheduler(**BETAS, **count, set_alpha_to_one=True, **ALONE[scheduler])
    made.set_timesteps(len(known))
    return scheduled(made, level=lambda t: MODEL.sigma(known[int(t)]), **options)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [2, 20, 100])
def test_ddim_goes_where_diffusers_goes(steps: int, eta: float) -> None:
    scheduler = DDIMScheduler(**LEADING, clip_sample=False)
    scheduler.set_timesteps(steps)
    program = compiled("DDIM", steps, eta=eta)
    theirs = scheduled(scheduler, eta=eta)
    np.testing.assert_allclose(run(program), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim_is_diffusers(steps: int, eta: float) -> None:
    program = compiled("DDIM", steps, eta=eta)
    theirs = along(program, DDIMScheduler, eta=eta)
    np.testing.assert_allclose(run(program), theirs, rtol=0, atol=1e-9, strict=True)


@pytest.mark.parametrize("steps", [2, 4, 20, 100])
def test_plms_goes_where_diffusers_goes(steps: int) -> None:
    scheduler = PNDMScheduler(**LEADING, skip_prk_steps=True)
    scheduler.set_timesteps(steps)
    program = compiled("PLMS", steps)
    np.testing.assert_allclose(run(program), scheduled(scheduler), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_plms_is_diffusers(steps: int) -> None:
    program = compiled("PLMS", steps)
    theirs = along(program, PNDMScheduler)
    np.testing.assert_allclose(run(program), theirs, rtol=0, atol=1e-9, strict=True)


@pytest.mark.parametrize("schedule", ["automatic", "karras"])
@pytest.mark.parametrize("steps", [*STEPS, 4])
def test_unipc_is_diffusers(steps: int, schedule: str) -> None:
    program = compiled("UniPC", steps, scheduler=schedule)
    last = MODEL.smallest if schedule == "automatic" else 0.0
    sigmas = torch.tensor([step.sigma for step in program.steps] + [last])
    scheduler = UniPCMultistepScheduler(**BETAS, solver_order=3, solver_type="bh1")
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.tensor([step.t for step in program.steps])
    theirs = scheduled(scheduler)
    if not last:
        # diffusers multiplies infinity by nothing there.
        theirs[-1] = denoised(theirs[-2], program.steps[-1].sigma)
    np.testing.assert_allclose(run(program), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 20, 50])
def test_tcd_is_diffusers(steps: int, eta: float) -> None:
    scheduler = TCDScheduler(**BETAS, clip_sample=False)
    scheduler.set_timesteps(steps)
    program = compiled("TCD", steps, eta=eta)
    theirs = scheduled(scheduler, eta=eta)
    np.testing.assert_allclose(run(program), theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("taken", [1, 2, 3, 20])
@pytest.mark.parametrize("name", ["DDIM", "DDIM random", "PLMS", "UniPC", "TCD"])
def test_what_begins_with_a_latent_is_diffusers_from_there(name: str, taken: int) -> None:
    steps, skipped, options = 25, 25 - taken, {}
    if name.startswith("DDIM"):
        scheduler, options = DDIMScheduler(**LEADING, clip_sample=False), {"eta": 0.0}
        options["eta"] = 0.7 if name.endswith("random") else 0.0
    elif name == "PLMS":
        scheduler = PNDMScheduler(**LEADING, skip_prk_steps=True)
    elif name == "UniPC":
        scheduler = UniPCMultistepScheduler(**BETAS, solver_order=3, solver_type="bh1")
    else:
        scheduler, options = TCDScheduler(**BETAS, clip_sample=False), {"eta": 0.3}
    scheduler.set_timesteps(steps)
    program = compiled(name.split(maxsplit=1)[0], steps, skipped, **options)
    if name == "UniPC":
        scheduler.sigmas = torch.tensor([s.sigma for s in program.steps] + [MODEL.smallest])
        scheduler.timesteps = torch.tensor([s.t for s in program.steps])
    elif name == "PLMS":
        # Its first step is told the second timestep twice.
        known = list(dict.fromkeys(scheduler.timesteps.tolist()))[skipped:]
        scheduler.timesteps = torch.tensor([*known[:1], *known[1:2], *known[1:]])
    else:
        scheduler.timesteps = scheduler.timesteps[skipped:]
    theirs = scheduled(scheduler, BEGUN, **options)
    np.testing.assert_allclose(run(program, begun=BEGUN), theirs, rtol=0, atol=1e-9)

"""Samplers that k-diffusion does not have, against diffusers' schedulers or written out plainly.

All in float64, in the analytic world of ``tests/analytic.py``, at every call of the model. At the
end it is seen to that every sampler is compared with somebody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, TCDScheduler, UniPCMultistepScheduler
from numpy.typing import NDArray

from farm.spec.samplers import SAMPLERS
from farm.spec.sampling import SamplingOptions
from farm.worker.samplers import Program, compile_program
from farm.worker.samplers.model_sigmas import ModelSigmas
from farm.worker.samplers.schedules import Span, karras
from tests.analytic import BEGUN, PICTURE, denoised, fresh, run
from tests.contract.test_samplers_k_diffusion import CASES, VECTORS
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


@pytest.mark.parametrize("steps", [*STEPS, 4, 8])
def test_lcm_is_multistep_consistency_sampling(steps: int) -> None:
    taught = np.arange(19, 1000, 20)
    levels = np.array([MODEL.sigma(t) for t in taught])
    timesteps = np.linspace(999, 19, steps)
    sigmas = [*np.exp(np.interp(timesteps, taught, np.log(levels))), 0.0]
    x = fresh(0) * sigmas[0]
    seen = [x]
    for draw, (sigma, following) in enumerate(pairwise(sigmas), start=1):
        t = taught[np.abs(np.log(levels) - np.log(sigma)).argmin()]
        skip = 0.25 / ((10 * t) ** 2 + 0.25)
        out = 10 * t / ((10 * t) ** 2 + 0.25) ** 0.5
        x = skip * x + out * denoised(x, sigma) + following * fresh(draw)
        seen.append(x)
    program = compiled("LCM", steps)
    assert {step.t for step in program.steps} <= set(taught)
    np.testing.assert_allclose(run(program), seen, rtol=0, atol=1e-9)


RESTARTS = {20: (1, 9), 36: (2, 9), 150: (2, 37)}
"""By the number of steps, how many there are and how long they take."""


@pytest.mark.parametrize("steps", [*STEPS, 19, 36])
def test_restart_goes_back_up_and_down_again(steps: int) -> None:
    restarts, length = RESTARTS.get(steps, (0, 0))
    span = Span(MODEL.smallest, MODEL.largest)
    sigmas = karras(MODEL, steps - restarts * length, span)
    spans = list(pairwise(sigmas))
    if restarts:
        low = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - 0.1))
        high = min(range(len(sigmas)), key=lambda i: abs(sigmas[i] - 2))
        again = karras(MODEL, length + 1, Span(sigmas[low], sigmas[high]))[:-1]
        spans[low:low] = list(pairwise(again)) * restarts
    draws = map(fresh, count(1))
    x, before, seen = fresh(0) * sigmas[0], sigmas[0], []
    for sigma, following in spans:
        if sigma > before:
            x = x + next(draws) * (sigma**2 - before**2) ** 0.5
        seen.append(x)
        slope = (x - denoised(x, sigma)) / sigma
        ahead = x + slope * (following - sigma)
        if following:
            seen.append(ahead)
            slope = (slope + (ahead - denoised(ahead, following)) / following) / 2
        x, before = x + slope * (following - sigma), following
    program = compiled("Restart", steps)
    assert sum(step.draw is not None for step in program.steps) == restarts
    np.testing.assert_allclose(run(program), [*seen, x], rtol=0, atol=1e-9)


def disagreeing(x: Latents, sigma: float) -> Latents:
    """What a negative prompt's estimate may be."""
    return denoised(x, sigma) * 0.7 - PICTURE * 0.2


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", STEPS)
def test_cfg_pp_renews_the_noise_of_the_negative_prompt(steps: int, eta: float) -> None:
    program = compiled("Euler a CFG++", steps, eta=eta)
    alphas = [1 / (step.sigma**2 + 1) for step in program.steps] + [1.0]
    x, draws, seen = fresh(0) * program.start.noise * alphas[0] ** 0.5, count(1), []
    for alpha, following in pairwise(alphas):
        latent, sigma = x / alpha**0.5, (1 / alpha - 1) ** 0.5
        seen.append(latent)
        noise = (latent - disagreeing(latent, sigma)) / sigma
        up = eta * ((1 - following) / (1 - alpha) * (1 - alpha / following)) ** 0.5
        x = following**0.5 * denoised(latent, sigma) + (1 - following - up**2) ** 0.5 * noise
        x = x + up * fresh(next(draws)) if up else x
    ours = run(program, negative=disagreeing)
    np.testing.assert_allclose(ours, [*seen, x], rtol=0, atol=1e-9)


ANSWERED = {
    "Restart": test_restart_goes_back_up_and_down_again,
    "DDIM": test_ddim_is_diffusers,
    "PLMS": test_plms_is_diffusers,
    "UniPC": test_unipc_is_diffusers,
    "LCM": test_lcm_is_multistep_consistency_sampling,
    "TCD": test_tcd_is_diffusers,
    "Euler a CFG++": test_cfg_pp_renews_the_noise_of_the_negative_prompt,
}


def compared(name: str) -> set[int]:
    """The numbers of steps at which a sampler is compared with its reference."""
    if name in ANSWERED:
        marks = ANSWERED[name].pytestmark
        return {each for mark in marks if mark.args[0] == "steps" for each in mark.args[1]}
    cases = [case.rpartition("/") for case in VECTORS.files]
    return {
        int(steps)
        for case, _, steps in cases
        if CASES.get(case, (case, {}))[0] == name and "-" not in steps
    }


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_compared_with_somebody_else_s_at_few_and_many_steps(name: str) -> None:
    unknown: set[int] = set()
    if name.startswith(("DPM++ 2M SDE", "DPM++ 3M SDE")):
        unknown = {1}  # k-diffusion cannot; ours is the model's estimate, as a unit test says
    elif name == "DPM adaptive":
        unknown = {1, 2, 3, 150}  # decides about its steps itself
    elif name == "TCD":
        unknown = {150}  # diffusers has 50 at most
    assert compared(name) >= set(STEPS) - unknown

"""Compiled samplers against k-diffusion's update rules, written out here as plain loops."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from math import exp, expm1, log

import numpy as np
import pytest
from numpy.typing import NDArray

from farm.errors import InvalidInput
from farm.spec.job import MAX_STEPS, SAMPLERS
from farm.worker.samplers import Program, compile_program
from farm.worker.samplers.schedules import ModelSigmas, karras, uniform
from tests.fake_models import ALPHAS, denoised

Latent = NDArray[np.float64]
Model = Callable[[Latent, float], Latent]
STEPS = [1, 2, 3, 20, MAX_STEPS]
PICTURE = np.linspace(-1.5, 1.5, 7)


def normal(x: Latent, sigma: float) -> Latent:
    """The best denoiser for latents normally distributed around a picture."""
    return denoised(x, sigma, PICTURE)


def certain(x: Latent, sigma: float) -> Latent:
    """A model that knows the picture already."""
    return PICTURE


def noise(seed: int = 5) -> Iterator[Latent]:
    generator = np.random.default_rng(seed)
    while True:
        yield generator.standard_normal(PICTURE.shape)


def run(program: Program, model: Model) -> list[Latent]:
    """The latent before the first step and after every step."""
    draws = noise()
    x, before = next(draws) * program.initial_scale, np.zeros_like(PICTURE)
    latents = [x]
    for step in program.steps:
        estimate, k = model(x, step.sigma), step.update
        x = k.x * x + k.denoised * estimate + k.previous * before
        if k.noise:
            x = x + k.noise * next(draws)
        before = estimate
        latents.append(x)
    return latents


def euler(model: Model, sigmas: list[float]) -> list[Latent]:
    x = next(noise()) * sigmas[0]
    latents = [x]
    for i in range(len(sigmas) - 1):
        d = (x - model(x, sigmas[i])) / sigmas[i]
        x = x + d * (sigmas[i + 1] - sigmas[i])
        latents.append(x)
    return latents


def euler_ancestral(model: Model, sigmas: list[float]) -> list[Latent]:
    draws = noise()
    x = next(draws) * sigmas[0]
    latents = [x]
    for i in range(len(sigmas) - 1):
        here, there = sigmas[i], sigmas[i + 1]
        up = min(there, (there**2 * (here**2 - there**2) / here**2) ** 0.5)
        down = (there**2 - up**2) ** 0.5
        d = (x - model(x, here)) / here
        x = x + d * (down - here)
        if there > 0:
            x = x + next(draws) * up
        latents.append(x)
    return latents


def dpmpp_2m(model: Model, sigmas: list[float]) -> list[Latent]:
    x = next(noise()) * sigmas[0]
    latents, old = [x], None
    for i in range(len(sigmas) - 1):
        estimate = model(x, sigmas[i])
        if sigmas[i + 1] == 0:
            x = estimate
        else:
            t, t_next = -log(sigmas[i]), -log(sigmas[i + 1])
            h, blend = t_next - t, estimate
            if old is not None:
                r = (t + log(sigmas[i - 1])) / h
                blend = (1 + 1 / (2 * r)) * estimate - 1 / (2 * r) * old
            x = exp(-t_next) / exp(-t) * x - expm1(-h) * blend
        old = estimate
        latents.append(x)
    return latents


REFERENCES = {
    "Euler": (euler, uniform),
    "Euler a": (euler_ancestral, uniform),
    "DPM++ 2M Karras": (dpmpp_2m, karras),
}


def test_every_name_a_job_may_have_is_known_here() -> None:
    assert set(REFERENCES) == set(SAMPLERS)
    for name in SAMPLERS:
        assert compile_program(name, 3, ALPHAS).name == name


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_program_steps_as_k_diffusion_does(name: str, steps: int) -> None:
    reference, schedule = REFERENCES[name]
    expected = reference(normal, schedule(ModelSigmas(ALPHAS), steps))
    made = run(compile_program(name, steps, ALPHAS), normal)
    assert len(made) == len(expected) == steps + 1
    for ours, theirs in zip(made, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_model_s_estimate(name: str) -> None:
    program = compile_program(name, 1, ALPHAS)
    start, end = run(program, normal)
    np.testing.assert_allclose(end, normal(start, program.initial_scale), rtol=0, atol=1e-12)
    assert program.steps[0].t == pytest.approx(999)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["Euler", "DPM++ 2M Karras"])
def test_towards_a_known_picture_the_noise_shrinks_with_sigma(name: str, steps: int) -> None:
    program = compile_program(name, steps, ALPHAS)
    sigmas = [step.sigma for step in program.steps] + [0.0]
    made = run(program, certain)
    for x, sigma in zip(made, sigmas, strict=True):
        expected = PICTURE + (made[0] - PICTURE) * sigma / sigmas[0]
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", STEPS)
def test_ancestral_noise_keeps_the_variance_at_sigma(steps: int) -> None:
    program = compile_program("Euler a", steps, ALPHAS)
    following = [step.sigma for step in program.steps[1:]] + [0.0]
    for step, after in zip(program.steps, following, strict=True):
        variance = (step.update.x * step.sigma) ** 2 + step.update.noise**2
        assert variance == pytest.approx(after**2, abs=1e-12)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_timesteps_fall_and_the_last_step_adds_no_noise(name: str, steps: int) -> None:
    program = compile_program(name, steps, ALPHAS)
    timesteps = [step.t for step in program.steps]
    assert timesteps == sorted(timesteps, reverse=True)
    assert program.steps[-1].update == (0, 1, 0, 0)
    assert program.initial_scale == program.steps[0].sigma


@pytest.mark.parametrize(
    ("sampler", "steps", "field", "remedy"),
    [("Oiler", 20, "sampler", "Euler a"), ("Euler", 0, "steps", "at least 1")],
)
def test_nonsense_is_refused_by_name(sampler: str, steps: int, field: str, remedy: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        compile_program(sampler, steps, ALPHAS)
    assert refused.value.field == field
    assert refused.value.value in (sampler, steps)
    assert remedy in (refused.value.remedy or "")


def test_samplers_batcher_and_recipes_do_without_torch() -> None:
    pure = "samplers", "engine.batcher", "engine.requests", "recipes.txt2img"
    modules = ", ".join(f"farm.worker.{name}" for name in pure)
    script = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", script], check=True)

"""The engine makes what diffusers' own pipelines make of the same noise and the same sigmas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from farm.spec.job import JobSpec
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan
from farm.worker.samplers import Program, compile_program
from tests.against_diffusers import BETAS, engine_s, visiting
from tests.checkpoints import diffusers_pipeline, tiny_file

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
SCHEDULERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "Euler": (EulerDiscreteScheduler, {}),
    "Euler a": (EulerAncestralDiscreteScheduler, {}),
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}),
    "Heun": (HeunDiscreteScheduler, {}),
    "UniPC": (UniPCMultistepScheduler, {"solver_order": 3, "solver_type": "bh1"}),
}
UNIT_VARIANCE = {"DPM++ 2M Karras", "UniPC"}
"""Their schedulers keep latents at variance 1 instead of multiplying the noise."""


class Case(NamedTuple):
    """A checkpoint, the engine's cache with it, and diffusers' pipeline of it."""

    models: ModelCache
    name: str
    pipeline: Any


def case_of(file: AssetFile) -> Case:
    return Case(ModelCache([file], by_name("cpu"), CPU), file.name, diffusers_pipeline(file.path))


@pytest.fixture(
    scope="module",
    params=["sd15", "sd15 v_prediction", "sdxl", "demo"],
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    if request.param == "demo":
        yield case_of(next(file for file in scan([builtin_folder()]) if file.name == "demo"))
        return
    family, _, prediction = request.param.partition(" ")
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    yield case_of(tiny_file(folder, family, prediction=prediction or "epsilon"))


def scheduler(case: Case, program: Program) -> Any:
    """diffusers' scheduler of the same sampler, at the same sigmas."""
    base, options = SCHEDULERS[program.name]
    # UniPC's authors stop at the lowest noise level that the model knows.
    last = program.levels[0] if program.name == "UniPC" else 0.0
    return visiting(base, program, last=last)(
        **BETAS,
        timestep_spacing="linspace",
        prediction_type=case.models.get(case.name).prediction,
        **options,
    )


def diffusers_s(case: Case, spec: JobSpec) -> tuple[torch.Tensor, np.ndarray]:
    """The latent and the image that diffusers makes."""
    program = compile_program(spec.sampler, spec.steps, case.models.get(case.name).alphas_cumprod)
    generator = torch.Generator().manual_seed(spec.seed)
    latents = torch.randn((1, 4, spec.height // 8, spec.width // 8), generator=generator)
    if spec.sampler in UNIT_VARIANCE:
        latents = latents * program.start.noise / (program.steps[0].sigma ** 2 + 1) ** 0.5
    pipeline = case.pipeline
    pipeline.scheduler = scheduler(case, program)
    latent = pipeline(
        spec.prompt,
        negative_prompt=spec.negative_prompt or None,
        width=spec.width,
        height=spec.height,
        num_inference_steps=spec.steps,
        guidance_scale=spec.cfg_scale,
        latents=latents,
        generator=generator,
        output_type="latent",
    ).images
    with torch.no_grad():
        pixels = pipeline.vae.decode(latent / pipeline.vae.config.scaling_factor).sample
    return latent[0], pipeline.image_processor.postprocess(pixels, output_type="np")[0]


@pytest.mark.parametrize(
    "job",
    [
        {"sampler": "Euler", "steps": 6, "cfg_scale": 3.0},
        {"sampler": "Euler a", "steps": 7, "cfg_scale": 4.0, "negative_prompt": "fog"},
        {"sampler": "DPM++ 2M Karras", "steps": 8, "cfg_scale": 2.0},
        {"sampler": "Euler a", "steps": 3, "cfg_scale": 1.0, "width": 96},
        {"sampler": "Heun", "steps": 4, "cfg_scale": 3.0},
        {"sampler": "UniPC", "steps": 5, "cfg_scale": 3.0},
        {"sampler": "DPM++ 2M Karras", "steps": 1, "cfg_scale": 2.0, "height": 96},
    ],
    ids=str,
)
def test_the_engine_and_diffusers_agree(case: Case, job: dict[str, Any]) -> None:
    values = {"width": 64, "height": 64, "prompt": "a red apple", "seed": 11} | job
    spec = JobSpec(checkpoint=case.name, **values)
    ((latent, image),) = engine_s(case.models, spec)
    expected_latent, expected_image = diffusers_s(case, spec)
    assert latent.abs().max() > 0.1
    torch.testing.assert_close(latent, expected_latent, rtol=0, atol=1e-3)
    assert image.shape == (spec.height, spec.width, 3)
    # Our pixels are cut off to whole numbers, up to one below the real ones.
    np.testing.assert_allclose(image / 255, expected_image, rtol=0, atol=1 / 255 + 1e-3)

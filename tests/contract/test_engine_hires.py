"""The second pass is what diffusers' image-to-image pipeline makes of the same latent and noise."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

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
    "DPM++ 2M Karras": (DPMSolverMultistepScheduler, {"final_sigmas_type": "zero"}),
}


class Case(NamedTuple):
    models: ModelCache
    name: str
    first: Any
    second: Any


@pytest.fixture(scope="module", params=["sd15", "sdxl", "demo"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A checkpoint, the engine's cache with it, and both of diffusers' pipelines of it."""
    file = (
        next(file for file in scan([builtin_folder()]) if file.name == "demo")
        if request.param == "demo"
        else tiny_file(tmp_path_factory.mktemp("checkpoints"), request.param)
    )
    return case_of(file)


def case_of(file: AssetFile) -> Case:
    pipeline = diffusers_pipeline(file.path)
    kinds = {True: StableDiffusionXLImg2ImgPipeline, False: StableDiffusionImg2ImgPipeline}
    parts = dict(pipeline.components)
    if file.family == "sdxl":
        parts["force_zeros_for_empty_prompt"] = pipeline.config.force_zeros_for_empty_prompt
        parts["add_watermarker"] = False
    else:
        parts["requires_safety_checker"] = False
    second = kinds[file.family == "sdxl"](**parts)
    second.set_progress_bar_config(disable=True)
    return Case(ModelCache([file], by_name("cpu"), CPU), file.name, pipeline, second)


def programmed(case: Case, program: Program) -> Any:
    """diffusers' scheduler of the same sampler, at the same sigmas; images begun with another
    take all of them."""
    base, options = SCHEDULERS[program.name]

    class Whole(visiting(base, program)):  # type: ignore[misc]
        def add_noise(self, original: Tensor, noise: Tensor, _: Any) -> Tensor:
            # At variance 1 where the scheduler keeps latents so.
            sigma = self.sigmas[0]
            noisy = original + noise * sigma
            return noisy / (sigma**2 + 1) ** 0.5 if "DPM" in program.name else noisy

    return Whole(**BETAS, timestep_spacing="linspace", prediction_type="epsilon", **options)


def diffusers_s(case: Case, spec: JobSpec) -> Tensor:
    """The latent that diffusers makes in two passes, resized in between."""
    alphas = case.models.get(case.name).alphas_cumprod
    first, second = spec.passes
    prompts = {"negative_prompt": spec.negative_prompt or None, "output_type": "latent"}
    noise = drawn(spec.seed, spec.height, spec.width)
    program = compile_program(first.sampler, first.steps, alphas)
    case.first.scheduler = programmed(case, program)
    unit = program.steps[0].sigma if first.sampler == "Euler" else 1.0
    start = program.start.noise / (program.steps[0].sigma ** 2 + 1) ** 0.5
    small = case.first(
        spec.prompt,
        width=spec.width,
        height=spec.height,
        num_inference_steps=first.steps,
        guidance_scale=first.cfg_scale,
        latents=noise * (start if unit == 1.0 else 1.0),
        **prompts,
    ).images
    begun = enlarged(case, small, spec)
    case.second.scheduler = programmed(
        case, compile_program(second.sampler, *second.taken[:1], alphas, skipped=second.taken[1])
    )
    case.second.prepare_latents = lambda *_, **__: case.second.scheduler.add_noise(
        begun, drawn(spec.seed, second.height, second.width), None
    )
    return case.second(
        second.prompt,
        image=torch.zeros(1, 3, second.height, second.width),
        strength=1.0,
        num_inference_steps=second.steps,
        guidance_scale=second.cfg_scale,
        **(prompts | sizes(case, second)),
    ).images[0]


def sizes(case: Case, second: Any) -> dict[str, Any]:
    if "xl" not in type(case.second).__name__.lower():
        return {}
    size = (second.height, second.width)
    return {"original_size": size, "target_size": size}


def drawn(seed: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, 4, height // 8, width // 8), generator=generator)


def enlarged(case: Case, small: Tensor, spec: JobSpec) -> Tensor:
    """As a latent, or by the VAE of diffusers and Pillow."""
    second = spec.passes[1]
    if spec.hires_upscaler == "Latent":
        return interpolate(small, (second.height // 8, second.width // 8), mode="bilinear")
    vae = case.second.vae
    with torch.no_grad():
        shown = vae.decode(small / vae.config.scaling_factor).sample[0]
        pixels = ((shown + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(1, 2, 0).numpy()
        size = (second.width, second.height)
        large = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        picture = torch.from_numpy(np.array(large)).permute(2, 0, 1)[None].float() / 127.5 - 1
        return vae.encode(picture).latent_dist.mean * vae.config.scaling_factor


@pytest.mark.parametrize(
    "job",
    [
        {"sampler": "Euler", "steps": 4, "denoising_strength": 0.5},
        {"sampler": "DPM++ 2M Karras", "steps": 4, "denoising_strength": 0.6, "hires_steps": 5},
        {"sampler": "Euler", "steps": 3, "hires_upscaler": "Lanczos", "hires_steps": 1},
        {
            "sampler": "Euler",
            "steps": 3,
            "hires_sampler": "DPM++ 2M Karras",
            "hires_prompt": "a lion",
            "hires_cfg_scale": 2.0,
            "negative_prompt": "fog",
            "denoising_strength": 1.0,
        },
    ],
    ids=str,
)
def test_both_passes_are_those_of_diffusers(case: Case, job: dict[str, Any]) -> None:
    values = {"width": 64, "height": 64, "prompt": "a red apple", "seed": 11, "cfg_scale": 3.0}
    spec = JobSpec(checkpoint=case.name, hires_scale=1.5, **(values | job))
    ((latent, image),) = engine_s(case.models, spec)
    expected = diffusers_s(case, spec)
    assert image.shape == (96, 96, 3)
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-3)

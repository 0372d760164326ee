"""Every family through the engine, against diffusers' own pipelines for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from farm.spec.job import JobSpec
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.samplers import compile_program
from tests.against_diffusers import engine_s, euler
from tests.checkpoints import diffusers_pipeline, tiny_file

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
SIDE = 64


class Case(NamedTuple):
    """The engine's cache with a checkpoint, and diffusers' pipeline of it."""

    models: ModelCache
    name: str
    pipeline: Any
    kind: str


CASES: dict[str, dict[str, Any]] = {
    "sd2": {},
    "sd2 v": {"prediction": "v_prediction"},
    "sdxl-refiner": {},
    "ssd1b": {},
    "sd15 inpaint": {"channels": 9},
    "sd2 inpaint": {"channels": 9},
    "sdxl inpaint": {"channels": 9},
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, _, _ = request.param.partition(" ")
    file = tiny_file(tmp_path_factory.mktemp("tiny"), family, **CASES[request.param])
    pipeline = diffusers_pipeline(file.path)
    return Case(ModelCache([file], by_name("cpu"), CPU), file.name, pipeline, request.param)


def unpainted(case: Case) -> torch.Tensor:
    """What our checkpoint shows an inpainting model beside the latent."""
    return case.models.get(case.name)._decoder.unpainted(SIDE // 8, SIDE // 8)


def inputs(case: Case, noise: torch.Tensor) -> dict[str, Any]:
    """What this kind of pipeline starts from."""
    if case.kind == "sdxl-refiner":
        # It is made for refining: here of an empty latent, with nothing left of it.
        size = {"original_size": (SIDE, SIDE), "target_size": (SIDE, SIDE)}
        return {"image": torch.zeros_like(noise), "strength": 1.0, **size}
    start: dict[str, Any] = {"latents": noise, "width": SIDE, "height": SIDE}
    if "inpaint" in case.kind:
        start |= {
            "image": torch.zeros(1, 3, SIDE, SIDE),
            "mask_image": torch.ones(1, 1, SIDE, SIDE),
            "masked_image_latents": unpainted(case)[:, 1:],
            "strength": 1.0,
        }
    return start


@torch.no_grad()
def diffusers_s(case: Case, spec: JobSpec) -> torch.Tensor:
    """The latent that diffusers makes."""
    checkpoint = case.models.get(case.name)
    program = compile_program(spec.sampler, spec.steps, checkpoint.alphas_cumprod)
    shape = (1, 4, SIDE // 8, SIDE // 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(spec.seed))
    pipeline = case.pipeline
    pipeline.scheduler = euler(program, checkpoint.prediction)
    latent: torch.Tensor = pipeline(
        spec.prompt,
        negative_prompt=spec.negative_prompt or None,
        num_inference_steps=spec.steps,
        guidance_scale=spec.cfg_scale,
        generator=torch.Generator().manual_seed(spec.seed),
        output_type="latent",
        **inputs(case, noise),
    ).images[0]
    return latent


@pytest.mark.parametrize(
    "job",
    [
        {"steps": 6, "cfg_scale": 3.0, "negative_prompt": "fog"},
        {"steps": 5, "cfg_scale": 2.0},
        {"steps": 4, "cfg_scale": 1.0},
    ],
    ids=str,
)
def test_the_engine_and_diffusers_agree(case: Case, job: dict[str, Any]) -> None:
    values = {"width": SIDE, "height": SIDE, "prompt": "a red apple", "seed": 11, **job}
    spec = JobSpec(checkpoint=case.name, sampler="Euler", **values)
    ((latent, _),), expected = engine_s(case.models, spec), diffusers_s(case, spec)
    assert latent.abs().max() > 0.1
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_an_inpainting_model_sees_a_full_mask_and_grey(case: Case) -> None:
    if "inpaint" not in case.kind:
        assert not case.models.get(case.name)._predictor.inpaints
        return
    vae = case.pipeline.vae
    grey = vae.encode(torch.zeros(1, 3, SIDE, SIDE)).latent_dist.mean * vae.config.scaling_factor
    assert unpainted(case).shape == (1, 5, SIDE // 8, SIDE // 8)
    assert bool((unpainted(case)[:, 0] == 1).all())
    # An even picture has almost no variance for the norms to divide by, so roundings grow.
    torch.testing.assert_close(unpainted(case)[:, 1:], grey, rtol=0, atol=1e-3)


def test_cases_are_what_they_are_called(case: Case) -> None:
    checkpoint = case.models.get(case.name)
    family, _, kind = case.kind.partition(" ")
    assert checkpoint.family == family
    assert checkpoint.prediction == ("v_prediction" if kind == "v" else "epsilon")
    assert ("Inpaint" in type(case.pipeline).__name__) == (kind == "inpaint")

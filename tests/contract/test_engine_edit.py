"""Models for editing, against diffusers' InstructPix2Pix pipelines: three rows for an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from farm.errors import InvalidInput
from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.engine.requests import Denoise, Edit, Made, Recipe
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.recipes.txt2img import txt2img
from farm.worker.samplers import compile_program
from tests.against_diffusers import engine_s, euler
from tests.checkpoints import diffusers_pipeline, tiny_file

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
SIDE = 64
PICTURE = torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=torch.Generator().manual_seed(5))


class Case(NamedTuple):
    models: ModelCache
    name: str
    pipeline: Any


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    file = tiny_file(tmp_path_factory.mktemp("tiny"), request.param, channels=8)
    models = ModelCache([file], by_name("cpu"), CPU)
    return Case(models, file.name, diffusers_pipeline(file.path))


def edited(job: JobSpec) -> Recipe:
    """Edits the picture as strongly as the job's variation seed says, in tenths; at 0 it is shown
    nothing."""
    recipe = txt2img(job)
    request: Any = next(recipe)
    try:
        while True:
            if isinstance(request, Denoise) and job.variation_seed:
                edit = Edit(Made(request, PICTURE[0]), job.variation_seed / 10)
                request = replace(request, edit=edit)
            request = recipe.send((yield request))
    except StopIteration as end:
        return end.value


@pytest.fixture(autouse=True)
def edits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.worker.engine.job.txt2img", edited)


def spec(case: Case, seed: int, tenths: int, cfg_scale: float, **changes: Any) -> JobSpec:
    values = {"steps": 4, "sampler": "Euler", "prompt": "make it red", "negative_prompt": "fog"}
    return JobSpec(
        checkpoint=case.name,
        seed=seed,
        variation_seed=tenths,
        cfg_scale=cfg_scale,
        width=SIDE,
        height=SIDE,
        **values | changes,
    )


@torch.no_grad()
def diffusers_s(case: Case, job: JobSpec) -> Tensor:
    checkpoint = case.models.get(case.name)
    program = compile_program(job.sampler, job.steps, checkpoint.alphas_cumprod)
    generator = torch.Generator().manual_seed(job.seed)
    case.pipeline.scheduler = euler(program, checkpoint.prediction)
    size = {"width": SIDE, "height": SIDE} if "sdxl" in case.name else {}
    latent: Tensor = case.pipeline(
        job.prompt,
        negative_prompt=job.negative_prompt,
        image=PICTURE,
        image_guidance_scale=job.variation_seed / 10,
        num_inference_steps=job.steps,
        guidance_scale=job.cfg_scale,
        latents=torch.randn(PICTURE.shape, generator=generator),
        output_type="latent",
        **size,
    ).images[0]
    return latent


@pytest.mark.parametrize(("tenths", "cfg_scale"), [(15, 7.0), (12, 2.0), (30, 4.5), (10, 3.0)])
def test_the_engine_and_diffusers_agree(case: Case, tenths: int, cfg_scale: float) -> None:
    job = spec(case, 11, tenths, cfg_scale)
    (made,) = engine_s(case.models, job)
    expected = diffusers_s(case, job)
    assert made.latent.abs().max() > 0.1
    torch.testing.assert_close(made.latent, expected, rtol=0, atol=2e-3)


def test_a_crowd_of_edits_and_others_changes_nobody(case: Case) -> None:
    jobs = [
        spec(case, 1, 15, 5.0),
        spec(case, 2, 0, 5.0, sampler="Euler a"),
        spec(case, 3, 20, 3.0, prompt="make it blue AND a hat:0.5", steps=5),
        spec(case, 4, 10, 1.0, negative_prompt=""),
        spec(case, 5, 25, 6.0, guidance_end=0.5),
    ]
    for job, made in zip(jobs, engine_s(case.models, *jobs), strict=True):
        (alone,) = engine_s(case.models, job)
        torch.testing.assert_close(made.latent, alone.latent, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("tenths", [0, 15])
def test_a_strict_job_is_bit_equal_among_edits(case: Case, tenths: int) -> None:
    job = spec(case, 7, tenths, 4.0, strict=True)
    (alone,) = engine_s(case.models, job)
    crowd = engine_s(case.models, spec(case, 1, 15, 5.0), job, spec(case, 2, 0, 1.0))
    assert torch.equal(crowd[1].latent, alone.latent)


@pytest.mark.parametrize(
    ("tenths", "cfg_scale", "rows"),
    [
        (15, 5.0, 3),
        (10, 5.0, 2),
        (10, 1.0, 1),
        (0, 5.0, 2),
    ],
)
def test_only_the_rows_that_count_are_there(
    case: Case, tenths: int, cfg_scale: float, rows: int
) -> None:
    with Engine(case.models, by_name("cpu"), CPU) as engine:
        made = engine.submit("one", spec(case, 1, tenths, cfg_scale)).result(120)
    assert made.stats.mean_rows == rows


def test_a_picture_of_another_size_ends_its_own_job_only(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.contract.test_engine_edit.PICTURE", torch.zeros(1, 4, 9, 8))
    with Engine(case.models, by_name("cpu"), CPU) as engine:
        bad, good = (engine.submit(str(tenths), spec(case, 1, tenths, 5.0)) for tenths in (15, 0))
        error = bad.exception(120)
        assert "[4, 9, 8] does not go with one of [4, 8, 8]" in str(error)
        assert good.result(120).image.shape == (SIDE, SIDE, 3)


def test_a_model_that_is_not_for_editing_says_so(tmp_path: Path) -> None:
    file = tiny_file(tmp_path, "sd15")
    models = ModelCache([file], by_name("cpu"), CPU)
    plain = Case(models, file.name, None)
    with Engine(models, by_name("cpu"), CPU) as engine:
        bad, good = (engine.submit(str(n), spec(plain, 1, n, 5.0)) for n in (15, 0))
        with pytest.raises(InvalidInput, match="is no model for editing") as refused:
            bad.result(120)
        assert refused.value.field == "checkpoint"
        assert good.result(120).image.shape == (SIDE, SIDE, 3)

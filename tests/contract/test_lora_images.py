"""Images with LoRAs: what diffusers makes with merged weights, whoever else is on the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import CheckpointError
from farm.spec import networks
from farm.spec.job import JobSpec
from farm.worker.engine import Engine, Rendered
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.library import Library
from farm.worker.models.lora_shelf import LoraShelf
from farm.worker.models.precision import computing_in
from farm.worker.samplers import compile_program
from tests.against_diffusers import euler
from tests.checkpoints import diffusers_pipeline, tiny_file
from tests.networks import Dense, make_lora

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
NAMINGS = {"ink": "kohya", "fur": "peft"}


class Studio:
    """A tiny checkpoint with two LoRAs, in our engine and as diffusers' pipeline."""

    def __init__(self, folder: Path, family: str) -> None:
        self.file = tiny_file(folder, family)
        self.library = Library([folder])
        self.models = ModelCache(self.library, by_name("cpu"), CPU)
        self.dense: dict[str, Dense] = {}
        (folder / "Lora").mkdir()
        modules = dict(self.models.get(self.file.name)._patches._modules)
        for seed, (name, naming) in enumerate(NAMINGS.items()):
            path = folder / "Lora" / f"{name}.safetensors"
            self.dense[name] = make_lora(
                path, modules, naming=naming, alpha=1.0, seed=seed, size=0.2
            )
        self.library.scan()

    def render(self, *specs: JobSpec) -> list[Rendered]:
        engine = Engine(self.models, by_name("cpu"), CPU, assets=self.library)
        futures = [engine.submit(str(place), job) for place, job in enumerate(specs)]
        with engine:
            return [future.result(120) for future in futures]

    def spec(self, prompt: str, seed: int = 3, **changes: Any) -> JobSpec:
        values = {"width": 64, "height": 64, "steps": 5, "cfg_scale": 3.0, "sampler": "Euler"}
        return JobSpec(checkpoint=self.file.name, prompt=prompt, seed=seed, **(values | changes))

    def diffusers_s(self, spec: JobSpec, text: str, te: Any, unet: Any) -> np.ndarray:
        """The image of diffusers' pipeline with LoRAs merged into its weights."""
        pipeline = diffusers_pipeline(self.file.path)
        for strengths, in_unet in ((te, False), (unet, True)):
            for name, strength in strengths.items():
                for (part, parameter), delta in self.dense[name].items():
                    if (part == "unet") == in_unet:
                        weight = getattr(pipeline, part).get_parameter(parameter)
                        weight.data += (strength * delta).float()
        alphas = self.models.get(self.file.name).alphas_cumprod
        pipeline.scheduler = euler(compile_program(spec.sampler, spec.steps, alphas))
        shape = (1, 4, spec.height // 8, spec.width // 8)
        generator = torch.Generator().manual_seed(spec.seed)
        return pipeline(
            text,
            negative_prompt=spec.negative_prompt or None,
            width=spec.width,
            height=spec.height,
            num_inference_steps=spec.steps,
            guidance_scale=spec.cfg_scale,
            latents=torch.randn(shape, generator=generator),
            output_type="np",
        ).images[0]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def studio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"), request.param)


@pytest.mark.parametrize(
    ("tags", "te", "unet"),
    [
        ("<lora:ink>", {"ink": 1.0}, {"ink": 1.0}),
        ("<lora:ink:0.5:1.2>", {"ink": 0.5}, {"ink": 1.2}),
        ("<lora:ink:0:0.7>", {}, {"ink": 0.7}),
        ("<lora:ink:1:0>", {"ink": 1.0}, {}),
        (
            "<lyco:fur:te=0.3:unet=-0.4><lora:ink:0.8>",
            {"ink": 0.8, "fur": 0.3},
            {"ink": 0.8, "fur": -0.4},
        ),
    ],
)
def test_the_image_is_that_of_merged_weights(
    studio: Studio, tags: str, te: dict[str, float], unet: dict[str, float]
) -> None:
    spec = studio.spec(f"a red apple{tags}", negative_prompt="fog")
    (made,) = studio.render(spec)
    expected = studio.diffusers_s(spec, "a red apple", te, unet)
    # Our pixels are cut off to whole numbers, up to one below the real ones.
    np.testing.assert_allclose(made.image / 255, expected, rtol=0, atol=1 / 255 + 1e-3)
    (bare,) = studio.render(studio.spec("a red apple", negative_prompt="fog"))
    assert np.abs(made.image.astype(int) - bare.image.astype(int)).max() > 8


def test_jobs_with_and_without_side_by_side_are_as_alone(studio: Studio) -> None:
    tags = [
        "",
        "<lora:ink:0.5>",
        "<lora:ink:1:0.5>",
        "",
        "<lora:fur:0.5><lora:ink>",
        "<lora:ink:0.5>",
    ]
    specs = [
        studio.spec(f"a cat{tag}", seed, steps=3 + seed, sampler="Euler a", strict=seed == 3)
        for seed, tag in enumerate(tags)
    ]
    together = studio.render(*specs)
    for spec, made in zip(specs, together, strict=True):
        (alone,) = studio.render(spec)
        assert np.abs(made.image.astype(int) - alone.image.astype(int)).max() <= 1
        if spec.strict:
            assert np.array_equal(made.image, alone.image)
    assert together[1].stats.mean_rows > 2  # it shared forwards with the last, of the same set


def test_a_lora_that_is_not_there_fails_its_job_alone_and_names_near_ones(studio: Studio) -> None:
    engine = Engine(studio.models, by_name("cpu"), CPU, assets=studio.library)
    bad = engine.submit("bad", studio.spec("a cat<lora:inc:0:1>"))
    good = engine.submit("good", studio.spec("a cat<lora:ink:0:1>"))
    with engine:
        error = bad.exception(120)
        assert good.result(120).image.std() > 0
    assert isinstance(error, CheckpointError)
    assert (error.field, error.value) == ("lora", "inc")
    assert error.remedy == "Did you mean ink?"


def test_weights_stay_where_they_lie_while_sets_change(studio: Studio) -> None:
    """What is recorded or compiled reads them there."""
    checkpoint = studio.models.get(studio.file.name)
    shelf = LoraShelf(studio.library)

    def places() -> list[int]:
        return [weight.data_ptr() for weight in checkpoint._unet.parameters()]

    before = places()
    for text in ("<lora:ink>", "<lora:fur:0.5><lora:ink>", ""):
        checkpoint.wear("unet", networks.parse(text).unet, shelf.get, spare=0)
        assert places() == before
    with computing_in(checkpoint._unet, torch.bfloat16):
        pass
    assert places() == before

"""AND, prompt editing and CFG rescale through the engine, against a plain loop around diffusers'
UNet that runs every text by itself."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from farm.spec.job import JobSpec
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.samplers import compile_program
from tests.against_diffusers import engine_s
from tests.checkpoints import diffusers_pipeline, tiny_file

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
SIDE = 64
LONG = "red " * 80


class Case(NamedTuple):
    """The engine's cache with a checkpoint, and diffusers' UNet of it."""

    models: ModelCache
    name: str
    unet: Any


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    file = tiny_file(tmp_path_factory.mktemp("tiny"), request.param)
    unet = diffusers_pipeline(file.path).unet
    return Case(ModelCache([file], by_name("cpu"), CPU), file.name, unet)


@torch.no_grad()
def loop_s(case: Case, job: JobSpec, says: Any, away: Any) -> Tensor:
    """The latent of Euler's rule, one text at a time.

    Args:
        says: for each step the parts of the prompt with their weights.
        away: for each step the negative prompt; None for no guidance.
    """
    checkpoint = case.models.get(case.name)
    steps = compile_program("Euler", job.steps, checkpoint.alphas_cumprod).steps
    sigmas = [*(step.sigma for step in steps), 0.0]
    generator = torch.Generator().manual_seed(job.seed)
    x = torch.randn((1, 4, SIDE // 8, SIDE // 8), generator=generator) * sigmas[0]

    def noise(text: str, step: int, length: int = 0, negative: bool = False) -> Tensor:
        encoded = checkpoint.encode(text, negative=negative)
        tokens = encoded.tokens
        if length > tokens.shape[1]:
            missing = length - tokens.shape[1]
            tokens = torch.cat([tokens, tokens[:, -1:].repeat(1, missing, 1)], dim=1)
        extra: dict[str, Any] = {}
        if encoded.pooled is not None:
            sizes = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]], dtype=torch.float32)
            extra = {"added_cond_kwargs": {"text_embeds": encoded.pooled, "time_ids": sizes}}
        scaled = x / (sigmas[step] ** 2 + 1) ** 0.5
        return case.unet(scaled, steps[step].t, encoder_hidden_states=tokens, **extra).sample

    for step in range(job.steps):
        parts, negative = says(step), away(step)
        longest = max(checkpoint.encode(text).tokens.shape[1] for text, _ in parts)
        outputs = [(noise(text, step, longest), weight) for text, weight in parts]
        scale = 1.0
        base = outputs[0][0]
        if negative is not None:
            scale, base = job.cfg_scale, noise(negative, step, negative=True)
        direction = sum((output - base) * weight for output, weight in outputs)
        guided = base + direction * scale
        if job.cfg_rescale and negative is not None:
            rescaled = guided * ((base + direction).std() / guided.std())
            guided = job.cfg_rescale * rescaled + (1 - job.cfg_rescale) * guided
        x = x + guided * (sigmas[step + 1] - sigmas[step])
    return x[0]


CASES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "AND, editing, rescale": (
        {
            "prompt": "a red [cat:dog:0.5] AND blue sky :0.6",
            "negative_prompt": "[fog:rain:2]",
            "cfg_scale": 6.0,
            "cfg_rescale": 0.7,
        },
        lambda step: [("a red cat" if step < 3 else "a red dog", 1.0), ("blue sky", 0.6)],
        lambda step: "fog" if step < 2 else "rain",
    ),
    "a long part beside a short one": (
        {"prompt": f"{LONG}AND a blue sky :-0.5", "cfg_scale": 4.0},
        lambda step: [(LONG.strip(), 1.0), ("a blue sky", -0.5)],
        lambda step: "",
    ),
    "alternation without guidance in the end": (
        {"prompt": "a [cat|dog]", "negative_prompt": "fog", "guidance_end": 0.5},
        lambda step: [(("a cat", "a dog")[step % 2], 1.0)],
        lambda step: "fog" if step < 3 else None,
    ),
    "NGMS": (
        {"prompt": "a cat", "negative_prompt": "fog", "s_min_uncond": 15},
        lambda step: [("a cat", 1.0)],
        lambda step: None if step % 2 else "fog",
    ),
}


def job_of(case: Case, name: str) -> JobSpec:
    values = {"width": SIDE, "height": SIDE, "steps": 6, "seed": 11, "sampler": "Euler"}
    return JobSpec.model_validate({"checkpoint": case.name, **values, **CASES[name][0]})


@pytest.fixture(scope="module")
def together(case: Case) -> dict[str, Tensor]:
    made = engine_s(case.models, *(job_of(case, name) for name in CASES))
    return {name: one.latent for name, one in zip(CASES, made, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_the_engine_and_a_plain_loop_agree(
    case: Case, together: dict[str, Tensor], name: str
) -> None:
    job = job_of(case, name)
    ((alone, _),) = engine_s(case.models, job)
    expected = loop_s(case, job, *CASES[name][1:])
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-3)


def test_a_strict_job_is_bit_equal_among_them(case: Case) -> None:
    strict = job_of(case, "AND, editing, rescale").model_copy(update={"strict": True})
    others = [job_of(case, name) for name in list(CASES)[1:]]
    ((alone, _),) = engine_s(case.models, strict)
    assert torch.equal(alone, engine_s(case.models, strict, *others)[0].latent)


def test_editing_is_switching(case: Case) -> None:
    """Nothing of what is said later is in an image that stops before."""
    edited = job_of(case, "NGMS").model_copy(update={"prompt": "[a cat:a dog:6]"})
    plain = edited.model_copy(update={"prompt": "a cat"})
    one, other = engine_s(case.models, edited, plain)
    assert torch.equal(one.latent, other.latent)

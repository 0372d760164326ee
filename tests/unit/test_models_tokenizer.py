"""The CLIP tokenizer that ships with Farm, and the noise levels of the scheduler."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import pytest

from farm.errors import CheckpointError
from farm.spec.prompt.tokens import VOCABULARY
from farm.worker.models.betas import alphas_cumprod
from farm.worker.models.tokenizer import clip_tokenizer

START, END = 49406, 49407
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"


def test_the_vocabulary_is_openais() -> None:
    assert hashlib.sha256(VOCABULARY.read_bytes()).hexdigest() == VOCABULARY_SHA256
    assert len(clip_tokenizer("eos")) == 49408


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a red apple", [320, 736, 3055]),
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Red\n\tAPPLE", [320, 736, 3055]),
        ("", []),
        # Letters outside ASCII, an emoji, digits one by one, and Chinese, byte by byte.
        ("naïve 😀 12 中", [1097, 35689, 563, 7334, 272, 273, 19759, 511]),
    ],
)
def test_token_ids_are_clips(text: str, ids: list[int]) -> None:
    tokenizer: Any = clip_tokenizer("eos")
    assert tokenizer(text).input_ids == [START, *ids, END]


@pytest.mark.parametrize(("pad", "number"), [("eos", END), ("zero", 0)])
def test_padding(pad: Literal["eos", "zero"], number: int) -> None:
    tokenizer: Any = clip_tokenizer(pad)
    ids = tokenizer("a", padding="max_length", max_length=77).input_ids
    assert ids == [START, 320, END] + [number] * 74


def test_alphas_are_stable_diffusions() -> None:
    alphas = alphas_cumprod({})
    sigmas = [((1 - alpha) / alpha) ** 0.5 for alpha in alphas]
    assert len(alphas) == 1000
    assert sigmas[0] == pytest.approx(0.029167, abs=1e-6)
    assert sigmas[-1] == pytest.approx(14.614642, abs=1e-5)


def test_linear_betas() -> None:
    alphas = alphas_cumprod({"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02})
    assert alphas[0] == pytest.approx(0.9999)
    assert alphas[1] == pytest.approx(0.9999 * (1 - 0.0001 - 0.0199 / 999))


@pytest.mark.parametrize(
    "scheduler", [{"beta_schedule": "squaredcos_cap_v2"}, {"num_train_timesteps": 50}]
)
def test_other_schedules_are_refused(scheduler: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="scheduler config"):
        alphas_cumprod(scheduler)

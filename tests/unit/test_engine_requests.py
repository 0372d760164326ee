"""What the recipe asks for, and requests as their own content keys."""

from __future__ import annotations

from typing import Any

import pytest

from farm.worker.engine.requests import Condition, Decode, Denoise, EncodeText, Made, Request
from farm.worker.recipes.txt2img import txt2img
from tests.fake_models import spec


def play(job: Any, value: object = None) -> list[Request]:
    """All requests of the recipe; each is answered with ``value``."""
    recipe = txt2img(job)
    requests = [next(recipe)]
    while not isinstance(requests[-1], Decode):
        requests.append(recipe.send(Made(requests[-1], value)))
    with pytest.raises(StopIteration) as end:
        recipe.send(Made(requests[-1], value))
    assert end.value.value is value
    return requests


def test_txt2img_reads_both_prompts_samples_and_decodes() -> None:
    job = spec("a cat", 5, negative_prompt="fog", cfg_scale=3.0, width=128, strict=True)
    prompt, negative, denoise, decode = play(job)
    assert prompt == EncodeText("fake", ("a cat",), strict=True)
    assert negative == EncodeText("fake", ("fog",), negative=True, strict=True)
    assert denoise == Denoise(
        checkpoint="fake",
        width=128,
        height=64,
        sampler=job.sampler,
        steps=4,
        prompt=(Condition(Made(prompt, None)),),
        negative=Condition(Made(negative, None)),
        cfg_scale=3.0,
        seed=5,
        strict=True,
    )
    assert decode == Decode("fake", Made(denoise, None))


def test_without_guidance_it_asks_for_no_negative_prompt() -> None:
    prompt, denoise, _ = play(spec("a cat", cfg_scale=1.0, negative_prompt="fog"))
    assert isinstance(denoise, Denoise)
    assert denoise.prompt == (Condition(Made(prompt, None)),)
    assert denoise.negative is None


def test_equal_requests_are_one_key_whatever_they_made() -> None:
    assert play(spec("a cat", 1), "one") == play(spec("a cat", 1), "another")
    assert len(set(play(spec("a cat", 1), "one") + play(spec("a cat", 1), "another"))) == 4


def test_different_requests_differ_from_where_their_jobs_differ() -> None:
    *texts, denoise, decode = play(spec("a cat", 1))
    *same_texts, other_denoise, other_decode = play(spec("a cat", 2))
    assert texts == same_texts
    assert denoise != other_denoise
    assert decode != other_decode

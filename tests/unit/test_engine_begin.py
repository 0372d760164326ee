"""Images that begin with a latent, somewhere in the schedule, beside others that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import InvalidInput
from farm.spec.job import JobSpec
from farm.spec.strength import taken
from farm.worker.engine.requests import Begin, Denoise, Made, Recipe
from tests.by_hand import by_hand
from tests.encores import encore
from tests.engine_bench import Bench, alone
from tests.fake_models import spec

STRENGTHS = {"twice": 0.5, "last": 0.0, "whole": 1.0}


def again(job: JobSpec) -> Recipe:
    """The image of a prompt that names a strength is denoised once more, at that strength."""
    strength = next((STRENGTHS[word] for word in STRENGTHS if word in job.prompt), None)

    def more(request: Denoise, made: Made[Any]) -> Denoise | None:
        if strength is None:
            return None
        begun = made if "wrong" not in job.prompt else Made(request, torch.zeros(4, 8, 9))
        return replace(request, begin=Begin(begun, taken(request.steps, strength).skipped))

    return encore(job, more)


@pytest.fixture(autouse=True)
def twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.worker.engine.job.txt2img", again)


JOBS = [
    spec("twice a cat", 1, sampler="Euler", steps=6),
    spec("a dog", 2, sampler="Euler a", steps=9),
    spec("last a bus", 3, sampler="DPM++ 3M SDE Karras", steps=5),
    spec("twice a lion", 4, sampler="DPM++ SDE", steps=5, rng="NV"),
    spec("whole a tree", 5, sampler="DDIM", steps=4, cfg_scale=1.0),
    spec("twice a frog", 6, sampler="UniPC", steps=7, negative_prompt="fog"),
    spec("twice a tower", 7, sampler="Heun", steps=4, s_churn=5),
    spec("last a house", 8, sampler="DPM fast", steps=4),
]


def twice_by_hand(job: JobSpec) -> np.ndarray:
    first = by_hand(job)
    for word, strength in STRENGTHS.items():
        if word in job.prompt:
            return by_hand(job, first, taken(job.steps, strength).skipped)
    return first


def test_each_gets_what_it_gets_by_hand() -> None:
    bench = Bench(rows=32)
    for job, made in zip(JOBS, bench.render(*JOBS), strict=True):
        np.testing.assert_allclose(
            made.image, twice_by_hand(job), rtol=0, atol=3e-4, err_msg=str(job)
        )


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_strict_job_is_bit_equal_in_a_crowd(place: int) -> None:
    strict = JOBS[place].model_copy(update={"strict": True})
    crowd = Bench().render(*JOBS[:place], strict, *JOBS[place + 1 :])
    assert np.array_equal(crowd[place].image, alone(strict))


def test_only_the_steps_that_are_taken_cost_a_forward() -> None:
    bench = Bench()
    (made,) = bench.render(spec("twice a cat", steps=10, sampler="Euler", cfg_scale=1.0))
    assert made.stats.steps == 10 + 6
    assert bench.checkpoint.forwards == [1] * 16


def test_the_adaptive_sampler_begins_anywhere_too() -> None:
    jobs: list[Any] = [spec(f"{word} a", 1, sampler="DPM adaptive", eta=0.0) for word in STRENGTHS]
    for made in Bench().render(*jobs):
        assert np.isfinite(made.image).all()
        assert made.image.std() > 0


def test_a_latent_of_another_size_ends_its_own_job_only() -> None:
    bench = Bench()
    good, bad = bench.add(JOBS[0], spec("twice wrong", 2))
    bench.run()
    with pytest.raises(
        InvalidInput, match=r"\[4, 8, 9\] does not go with one of \[4, 8, 8\]"
    ) as no:
        bad.future.result(0)
    assert no.value.remedy == "Give one of the image's own size."
    image = good.future.result(0).image
    np.testing.assert_allclose(image, twice_by_hand(JOBS[0]), rtol=0, atol=3e-4)

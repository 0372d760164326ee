"""Images made anew in part, beside others that are made anew everywhere."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from farm.errors import InvalidInput
from farm.spec.job import JobSpec
from farm.spec.strength import taken
from farm.worker.engine.areas import Area
from farm.worker.engine.requests import Begin, Denoise, Made, Mask, Recipe
from farm.worker.recipes.txt2img import txt2img
from farm.worker.samplers import Draw, compile_program
from farm.worker.samplers.model_sigmas import ModelSigmas
from farm.worker.samplers.noise import ImageNoise
from tests.engine_bench import Bench, alone
from tests.fake_models import ALPHAS, denoised, mean_of, spec

KNOWN = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(3))
HALF = torch.zeros(8, 8)
HALF[2:7, 1:5] = 1
SOFT = torch.linspace(0, 1, 64).view(8, 8)
MASKS = {"half": HALF, "soft": SOFT, "none": torch.zeros(8, 8), "all": torch.ones(8, 8)}
STRENGTHS = {"twice": 0.5, "whole": 1.0}

JOBS = [
    spec("half a cat", 1, sampler="Euler", steps=6),
    spec("a dog", 2, sampler="Euler a", steps=9),
    spec("half a bus", 3, sampler="Euler a", steps=7),
    spec("soft a lion", 4, sampler="DPM++ SDE", steps=5, rng="NV"),
    spec("half a tree", 5, sampler="DPM++ 2M SDE Karras", steps=6, negative_prompt="fog"),
    spec("twice half a frog", 6, sampler="DPM++ 2M Karras", steps=8),
    spec("soft a tower", 7, sampler="Heun", steps=4, s_churn=5),
    spec("whole half a house", 8, sampler="DPM2 a", steps=5),
    spec("none a mouse", 9, sampler="UniPC", steps=5),
    spec("all a river", 10, sampler="LMS", steps=6, cfg_scale=1.0),
    spec("half a moon", 11, sampler="DDIM", steps=5),
    spec("half a star", 12, sampler="DPM++ 3M SDE", steps=1),
]


def found(job: JobSpec, of: dict[str, Any]) -> Any:
    return next((value for word, value in of.items() if word in job.prompt.split()), None)


def painted(job: JobSpec) -> Recipe:
    """The prompt names a mask, and how strongly what is known is changed."""
    recipe = txt2img(job)
    request: Any = next(recipe)
    try:
        while True:
            if isinstance(request, Denoise):
                request = masked(job, request)
            request = recipe.send((yield request))
    except StopIteration as end:
        return end.value


def masked(job: JobSpec, request: Denoise) -> Denoise:
    share, strength = found(job, MASKS), found(job, STRENGTHS)
    known = Made(request, KNOWN)
    if share is not None:
        request = replace(request, mask=Mask(Made(request, share), known))
    if strength is not None:
        part = taken(request.steps, strength)
        request = replace(request, begin=Begin(known, part.skipped))
    return request


@pytest.fixture(autouse=True)
def paint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.worker.engine.job.txt2img", painted)


def by_hand(job: JobSpec) -> NDArray[np.float64]:
    """[8, 8, 4]: webui's loop, one image in float64."""
    share = np.asarray(found(job, MASKS) if found(job, MASKS) is not None else np.ones((8, 8)))
    strength, known = found(job, STRENGTHS), KNOWN.double().numpy()
    skipped = taken(job.steps, strength).skipped if strength is not None else None
    program = compile_program(job.sampler, job.steps, ALPHAS, options=job.sampling, skipped=skipped)
    noise = ImageNoise(KNOWN.shape, job.seed, job.noise, program.halving)
    registers = np.zeros((4, 4, 8, 8))
    registers[0] = noise.first.numpy() * program.start.noise
    if program.start.churn is not None:
        registers[0] += noise.draw(Draw()).numpy() * program.start.churn
    if strength is not None:
        registers[0] += known
    for step in program.steps:
        level = ModelSigmas(ALPHAS).sigma(step.t)
        seen = registers[0] * ((level**2 + 1) / (step.sigma**2 + 1)) ** 0.5
        away = denoised(seen, level, mean_of(job.negative_prompt))
        towards = denoised(seen, level, mean_of(job.prompt))
        estimates = [
            registers[0] - step.sigma * (seen - clean) / level
            for clean in (away + (towards - away) * job.cfg_scale, away)
        ]
        estimates[0] = estimates[0] * share + known * (1 - share)
        drawn = noise.draw(step.draw).numpy() if step.draw else np.zeros(KNOWN.shape)
        registers = np.tensordot(
            np.array(step.update), np.stack([*registers, *estimates, drawn]), axes=1
        )
    return (registers[0] * share + known * (1 - share)).transpose(1, 2, 0)


def test_each_gets_what_it_gets_by_hand() -> None:
    for job, made in zip(JOBS, Bench(rows=32).render(*JOBS), strict=True):
        np.testing.assert_allclose(made.image, by_hand(job), rtol=0, atol=3e-4, err_msg=str(job))


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "Heun", "DDIM", "DPM adaptive", "LCM"])
def test_outside_it_is_exactly_what_was_known_and_inside_it_is_new(sampler: str) -> None:
    job = spec("half a cat", 1, sampler=sampler, steps=5)
    image = alone(job)
    known, inside = KNOWN.permute(1, 2, 0).numpy(), HALF.bool().numpy()
    assert np.array_equal(image[~inside], known[~inside])
    assert (np.abs(image - known)[inside] > 1e-3).mean() > 0.9


@pytest.mark.parametrize("place", [0, 1, 3, 4])
def test_a_strict_job_is_bit_equal_among_masks(place: int) -> None:
    strict = JOBS[place].model_copy(update={"strict": True})
    crowd = Bench().render(*JOBS[:place], strict, *JOBS[place + 1 :])
    assert np.array_equal(crowd[place].image, alone(strict))


def test_they_share_forwards_with_all_others() -> None:
    bench = Bench()
    jobs = [spec(f"{word} a", seed, sampler="Euler") for seed, word in enumerate(("half", "just"))]
    bench.render(*jobs)
    assert bench.checkpoint.forwards == [4] * jobs[0].steps


@pytest.mark.parametrize(
    ("share", "known", "told", "remedy"),
    [
        (torch.ones(8, 9), KNOWN, ("mask", [8, 9]), "Give one of [8, 8]"),
        (torch.ones(64, 64), KNOWN, ("mask", [64, 64]), "an eighth of the image's own size"),
        (torch.ones(1, 8, 8), KNOWN, ("mask", [1, 8, 8]), "Give one of [8, 8]"),
        (HALF * 255, KNOWN, ("mask", "255.0"), "Give 1 where"),
        (HALF - 0.5, KNOWN, ("mask", "-0.5"), "and 0 where"),
        (torch.where(HALF > 0, nan, 0.5), KNOWN, ("mask", "nan"), "Give 1 where"),
        (torch.where(HALF > 0, inf, 0.5), KNOWN, ("mask", "inf"), "Give 1 where"),
        (HALF, KNOWN[:, 1:], ("mask.known", [4, 7, 8]), "image's own size"),
        (HALF, torch.where(KNOWN > 0, nan, KNOWN), ("mask.known", None), "of numbers only"),
        (HALF, torch.where(KNOWN > 0, -inf, KNOWN), ("mask.known", None), "of numbers only"),
    ],
)
def test_a_mask_that_is_none_ends_its_own_job_only(
    monkeypatch: pytest.MonkeyPatch,
    share: torch.Tensor,
    known: torch.Tensor,
    told: tuple[str, Any],
    remedy: str,
) -> None:
    wrong = Mask(Made(None, share), Made(None, known))  # type: ignore[arg-type]
    paint = masked
    monkeypatch.setattr(
        f"{__name__}.masked",
        lambda job, request: (
            replace(request, mask=wrong) if job.seed == 99 else paint(job, request)
        ),
    )
    bench = Bench()
    good, other, bad = bench.add(JOBS[0], JOBS[1], spec("a pear", 99, sampler="Euler a"))
    bench.run()
    with pytest.raises(InvalidInput) as refused:
        bad.future.result(0)
    assert (refused.value.field, refused.value.value) == told
    assert remedy in str(refused.value.remedy)
    for job, made in zip(JOBS, (good, other), strict=False):
        np.testing.assert_allclose(made.future.result(0).image, by_hand(job), rtol=0, atol=3e-4)


def test_without_memory_for_the_last_mix_it_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, mix, left = Bench(), Area.__call__, [1]

    def short(self: Area, latent: torch.Tensor) -> torch.Tensor:
        if latent.ndim == 3 and left:
            left.pop()
            raise torch.OutOfMemoryError
        return mix(self, latent)

    monkeypatch.setattr(Area, "__call__", short)
    bench.models.idle = 1
    (made,) = bench.render(JOBS[0])
    assert (bench.models.idle, left) == (0, [])
    np.testing.assert_allclose(made.image, by_hand(JOBS[0]), rtol=0, atol=3e-4)

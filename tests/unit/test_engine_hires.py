"""Images in two passes, what jobs that begin alike share, and that nobody harms another by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from farm.errors import Cancelled, DoesNotFit, InvalidInput, NumericFailure
from farm.spec.hires import LATENT_UPSCALERS
from farm.spec.job import JobSpec
from farm.worker.engine.job import Job
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.resizing import resize_latent, resize_picture
from farm.worker.samplers import compile_program
from farm.worker.samplers.noise import ImageNoise
from tests.by_hand import by_hand
from tests.engine_bench import Bench, alone
from tests.fake_models import ALPHAS, FakeCheckpoint, spec

FIRST = 4
"""Steps of the first pass."""


def large(prompt: str = "a cat", seed: int = 1, **changes: Any) -> JobSpec:
    """Of 64x64, enlarged to 128x128; its first pass takes four forwards."""
    return spec(prompt, seed, **({"sampler": "Euler", "hires_scale": 2, "steps": FIRST} | changes))


JOBS = [
    large("a cat", 1),
    large("a dog", 2, sampler="Euler a", hires_scale=1.5, hires_upscaler="Latent (bicubic)"),
    large("a bus", 3, hires_sampler="DPM++ 2M Karras", hires_steps=7, denoising_strength=0.3),
    large("a lion", 4, cfg_scale=1.0, hires_cfg_scale=3.0, negative_prompt="fog", rng="NV"),
    large("a tree", 5, hires_prompt="a tower", hires_negative_prompt="dark", extra_noise=0.5),
    large("a frog", 6, hires_width=160, hires_height=96, variation_seed=9, variation_strength=0.3),
    large("a house", 7, steps=1, denoising_strength=1.0, eta_noise_seed_delta=7, sampler="Euler a"),
    spec("a mouse", 8, steps=5),
]


def in_two_passes(job: JobSpec) -> np.ndarray:
    """Each pass by hand, and torch in between."""
    if len(job.passes) == 1:
        return by_hand(job)
    second, target = job.passes[1], job.target
    assert target
    small = torch.from_numpy(by_hand(job).transpose(2, 0, 1))
    size = target.across // 8, target.down // 8
    begun = resize_latent(small, *size, job.hires_upscaler).numpy()
    columns, rows = target.width // 8, target.height // 8
    begun = begun[:, target.top :, target.left :][:, :rows, :columns]
    again = job.model_copy(
        update={
            "width": target.width,
            "height": target.height,
            "prompt": second.prompt,
            "negative_prompt": second.negative_prompt,
            "sampler": second.sampler,
            "steps": second.taken.steps,
            "cfg_scale": second.cfg_scale,
        }
    )
    program = compile_program(second.sampler, second.taken.steps, ALPHAS)
    noise = ImageNoise(begun.shape, job.seed, job.noise, program.halving).first
    begun = begun + job.extra_noise * noise.numpy()
    return by_hand(again, begun.transpose(1, 2, 0), second.taken.skipped)


def test_each_gets_what_it_gets_by_hand() -> None:
    bench = Bench(rows=32)
    for job, made in zip(JOBS, bench.render(*JOBS), strict=True):
        np.testing.assert_allclose(made.image, in_two_passes(job), rtol=0, atol=1e-3)


@pytest.mark.parametrize("place", range(len(JOBS) - 1))
def test_a_strict_image_is_bit_equal_in_a_crowd_and_from_a_shared_first_pass(place: int) -> None:
    strict = JOBS[place].model_copy(update={"strict": True})
    other = strict.model_copy(update={"denoising_strength": 0.9})
    bench = Bench()
    crowd = bench.render(*JOBS[:place], other, strict, *JOBS[place + 1 :])
    expected = alone(strict)
    assert np.array_equal(crowd[place + 1].image, expected)
    assert np.array_equal(bench.render(strict)[0].image, expected)


def test_a_sweep_of_strengths_makes_the_first_pass_once() -> None:
    strengths = [0.2, 0.4, 0.6, 0.8, 1.0]
    jobs = [large(denoising_strength=each, steps=6, hires_steps=2) for each in strengths]
    bench = Bench()
    made = bench.render(*jobs)
    # Five jobs of two rows each ride together in the second pass.
    assert bench.checkpoint.forwards == [2] * 6 + [16] * 2
    assert sorted(each.stats.steps for each in made) == [2, 2, 2, 2, 8]
    assert {each.stats.buckets for each in made} == {(2, 16)}
    for job, each in zip(jobs, made, strict=True):
        np.testing.assert_allclose(each.image, in_two_passes(job), rtol=0, atol=1e-3)
    bench.render(large(denoising_strength=0.5, steps=6, hires_steps=3))
    assert bench.checkpoint.forwards[8:] == [2] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 2},
        {"prompt": "a dog"},
        {"negative_prompt": "fog"},
        {"steps": 5},
        {"cfg_scale": 2.0},
        {"strict": True},
        {"s_noise": 1.1},
        {"rng": "NV"},
        {"width": 72},
        {"sampler": "Heun"},
        {"clip_skip": 2},
        {"prompt": "a cat <lora:x:0.5>"},
    ],
    ids=str,
)
def test_another_first_pass_is_made_for_itself(changes: dict[str, Any]) -> None:
    other = JobSpec.model_validate({**large().model_dump(), **changes})
    bench, fresh = Bench(), Bench()
    bench.render(large())
    before = len(bench.checkpoint.forwards)
    bench.render(other)
    fresh.render(other)
    assert bench.checkpoint.forwards[before:] == fresh.checkpoint.forwards


def test_what_is_kept_is_bounded_and_forgotten_with_its_checkpoint() -> None:
    files = [AssetFile("fake", Path("fake"), "sd15", 64, 1, marks=((1, 1, 1),))]
    bench = Bench(assets=files, shared_bytes=2 * 4 * 8 * 8 * 4)
    for seed in (1, 2, 1, 3, 1, 2):
        bench.render(large(seed=seed, cfg_scale=1.0))
    kept = 2  # the second time of seed 1, and its third
    assert len(bench.checkpoint.forwards) == 6 * 2 * FIRST - kept * FIRST
    files[0] = replace(files[0], marks=((1, 2, 1),))
    bench.render(large(seed=2, cfg_scale=1.0))
    assert len(bench.checkpoint.forwards) == 6 * 2 * FIRST - kept * FIRST + 2 * FIRST


def test_nothing_is_forgotten_for_what_is_too_large_to_be_kept() -> None:
    bench = Bench(shared_bytes=2 * 4 * 8 * 8 * 4)
    bench.render(large(seed=1))
    bench.render(large(seed=2, width=128, height=128))
    before = len(bench.checkpoint.forwards)
    bench.render(large(seed=1, denoising_strength=0.3))
    assert len(bench.checkpoint.forwards) - before == FIRST


def test_what_the_file_before_made_is_forgotten_once_that_has_left() -> None:
    files = [AssetFile("fake", Path("fake"), "sd15", 64, 1, marks=((1, 1, 1),))]
    bench = Bench(assets=files)
    files[0] = replace(files[0], marks=((1, 2, 1),))
    bench.render(large())  # the old one was in use, and is here still
    bench.models.replaced += 1
    read, made = len(bench.checkpoint.encoded), len(bench.checkpoint.forwards)
    bench.render(large())
    assert len(bench.checkpoint.encoded) == 2 * read
    assert len(bench.checkpoint.forwards) == 2 * made


def test_what_is_made_while_a_file_is_replaced_is_not_kept() -> None:
    files = [AssetFile("fake", Path("fake"), "sd15", 64, 1, marks=((1, 1, 1),))]
    bench = Bench(assets=files)
    bench.add(large())
    while len(bench.checkpoint.forwards) < 2:
        bench.core.turn()
    files[0] = replace(files[0], marks=((1, 2, 1),))
    bench.add(large(seed=2))
    bench.run()
    before = len(bench.checkpoint.forwards)
    bench.render(large(denoising_strength=0.3))
    assert len(bench.checkpoint.forwards) - before == 2 * FIRST
    bench.render(large(seed=2, denoising_strength=0.3))
    assert len(bench.checkpoint.forwards) - before == 3 * FIRST


def sharing(count: int = 3, **changes: Any) -> tuple[Bench, list[Job]]:
    """Jobs that share a first pass of ten steps, five of which are made."""
    bench = Bench()
    jobs = bench.add(
        *(
            large(steps=10, hires_steps=2, denoising_strength=(n + 1) / count, **changes)
            for n in range(count)
        )
    )
    while len(bench.checkpoint.forwards) < 5:
        bench.core.turn()
    return bench, jobs


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_who_is_cancelled_leaves_the_others_where_they_are(gone: int) -> None:
    bench, jobs = sharing()
    bench.core.jobs.cancel(jobs[gone].key)
    bench.run()
    with pytest.raises(Cancelled):
        jobs[gone].future.result(0)
    for place, job in enumerate(jobs):
        if place != gone:
            image = job.future.result(0).image
            np.testing.assert_allclose(image, in_two_passes(job.spec), rtol=0, atol=1e-3)
    assert len(bench.checkpoint.forwards) == 10 + 2


def test_all_but_the_last_may_go() -> None:
    bench, jobs = sharing()
    for job in jobs[:2]:
        bench.core.jobs.cancel(job.key)
    bench.run()
    image = jobs[2].future.result(0).image
    np.testing.assert_allclose(image, in_two_passes(jobs[2].spec), rtol=0, atol=1e-3)
    assert len(bench.checkpoint.forwards) == 10 + 2


def test_who_is_more_urgent_leads_from_where_the_others_stand() -> None:
    bench, _ = sharing()
    bench.add(*(spec("a bus", n, steps=8) for n in range(3)))
    urgent = Job("urgent", large(steps=10, hires_steps=2, denoising_strength=0.1), 99, rank=2)
    bench.core.jobs.add(urgent)
    before = len(bench.checkpoint.forwards)
    while not urgent.future.done():
        bench.core.turn()
    assert len(bench.checkpoint.forwards) - before == 5 + 2
    bench.run()
    image = urgent.future.result(0).image
    np.testing.assert_allclose(image, in_two_passes(urgent.spec), rtol=0, atol=1e-3)


def test_an_overflow_of_what_is_shared_is_everybody_s() -> None:
    bench = Bench()
    bench.checkpoint.poisoned.add("a cat")
    jobs = bench.add(large(), large(denoising_strength=0.2), large("a dog"))
    bench.run()
    for job in jobs[:2]:
        with pytest.raises(NumericFailure, match="step 1 of 8"):
            job.future.result(0)
    jobs[2].future.result(0)
    assert bench.checkpoint.forwards[0] == 4  # one row pair for both, one for the dog


def test_an_overflow_in_the_second_pass_is_said_with_its_step() -> None:
    bench = Bench()
    bench.checkpoint.poisoned.add("a lion")
    bad, good = bench.add(large(hires_prompt="a lion"), large())
    bench.run()
    with pytest.raises(NumericFailure, match="step 5 of 8"):
        bad.future.result(0)
    good.future.result(0)


def test_precision_is_climbed_by_each_pass_for_itself() -> None:
    bench = Bench()
    bench.checkpoint.rungs = 1
    bench.checkpoint.overflowing["a lion"] = 1
    made, _ = bench.render(large(hires_prompt="a lion"), large(seed=2, hires_prompt="a dog"))
    assert made.stats.precision == "precision 1"
    assert bench.checkpoint.lifts.count(1) == 2 * FIRST  # a row at a time
    np.testing.assert_allclose(made.image, in_two_passes(bench.jobs[0].spec), rtol=0, atol=1e-3)


def test_in_which_precision_a_first_pass_was_made_is_said_by_all_that_waited_for_it() -> None:
    bench = Bench()
    bench.checkpoint.rungs = 1
    bench.checkpoint.overflowing["a cat"] = 1
    changes = {"hires_prompt": "a dog", "denoising_strength": 0.4}
    made = bench.render(large(hires_prompt="a dog"), large(**changes), large("a bus"))
    assert [each.stats.precision for each in made] == ["precision 1", "precision 1", None]


def test_a_cancel_in_the_second_pass_ends_one_job() -> None:
    bench = Bench()
    jobs = bench.add(large(), large(denoising_strength=0.4))
    while len(bench.checkpoint.forwards) < FIRST + 2:
        bench.core.turn()
    bench.core.jobs.cancel(jobs[0].key)
    bench.run()
    with pytest.raises(Cancelled):
        jobs[0].future.result(0)
    image = jobs[1].future.result(0).image
    np.testing.assert_allclose(image, in_two_passes(jobs[1].spec), rtol=0, atol=1e-3)
    assert bench.checkpoint.forwards == [2] * FIRST + [4] * 2 + [2] * 2


def test_progress_counts_both_passes_and_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.worker.engine.reports.PROGRESS_SECONDS", 0.0)
    told: list[tuple[str, int, int]] = []
    bench = Bench(on_progress=lambda *what: told.append(what))
    bench.render(large(), large(denoising_strength=0.3, hires_steps=2))
    assert [(done, steps) for key, done, steps in told if key == "job-0"] == [
        (done, 8) for done in range(1, 9)
    ]
    assert [(done, steps) for key, done, steps in told if key == "job-1"] == [
        (done, 6) for done in range(1, 7)
    ]


def test_the_books_balance() -> None:
    bench = Bench()
    stats = [made.stats for made in bench.render(large(), large(denoising_strength=0.3), *JOBS)]
    counters = bench.core.pulse.counters
    assert sum(each.gpu_seconds for each in stats) == pytest.approx(counters.busy_seconds)
    assert counters.rows + counters.padded_rows == sum(bench.checkpoint.forwards)


def test_strength_0_is_the_latent_as_it_was_resized() -> None:
    bench = Bench()
    (made,) = bench.render(large(denoising_strength=0, extra_noise=1.0))
    small = torch.from_numpy(by_hand(large()).transpose(2, 0, 1))[None]
    expected = interpolate(small, (16, 16), mode="bilinear")[0].permute(1, 2, 0)
    np.testing.assert_allclose(made.image, expected, rtol=0, atol=1e-4)
    assert made.stats.steps == FIRST


def test_another_checkpoint_makes_the_second_pass() -> None:
    bench = Bench(FakeCheckpoint("fake"), FakeCheckpoint("other"))
    job = large(hires_checkpoint="other")
    made = bench.render(job, job.model_copy(update={"denoising_strength": 0.3}))
    assert bench.models.loads == ["fake", "other"]
    assert bench.models.known["fake"].forwards == [2] * FIRST
    assert bench.models.known["other"].encoded == ["a cat", ""]
    assert bench.models.known["other"].decoded == 2
    np.testing.assert_allclose(made[0].image, in_two_passes(job), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "upscaler", "refused"),
    [
        ("sdxl", "Latent", True),
        ("ssd1b", "Latent (nearest-exact)", True),
        ("sdxl", "Lanczos", False),
        ("sd2", "Latent", False),  # the same VAE
        ("sd15", "Latent", False),
    ],
)
def test_latents_are_not_handed_to_who_takes_them_for_something_else(
    family: str, upscaler: str, refused: bool
) -> None:
    names = {"fake": "sd15", "other": family}
    files = [AssetFile(name, Path(name), of, 64, 1) for name, of in names.items()]
    bench = Bench(FakeCheckpoint("fake"), FakeCheckpoint("other"), assets=files)
    bench.checkpoint.paints = bench.models.known["other"].paints = True
    asked = {"hires_upscaler": upscaler, "denoising_strength": 0.4}
    for strength in (0.4, 0.0):  # without a second pass it is never handed on
        asked["denoising_strength"] = strength
        (job,) = bench.add(large(hires_checkpoint="other", **asked))
        bench.run()
        error = job.future.exception(0)
        assert isinstance(error, InvalidInput) == (refused and strength > 0)
        assert error is None or getattr(error, "field", "") == "hires_upscaler"
    if refused:
        assert bench.models.loads == ["fake"]


def test_pictures_go_through_the_vae_once_for_all_that_begin_alike() -> None:
    bench = Bench()
    bench.checkpoint.paints = True
    strengths = (0.0, 0.3, 0.6)
    jobs = [large(hires_upscaler="Lanczos", denoising_strength=each) for each in strengths]
    made = bench.render(*jobs, large(hires_upscaler="Nearest", denoising_strength=0.3))
    assert bench.checkpoint.decoded == 1 + 4
    assert bench.checkpoint.encoded_pictures == 2
    assert made[0].image.shape == (128, 128, 3)
    assert bench.checkpoint.forwards[:FIRST] == [2] * FIRST
    shown = bench.checkpoint.draft(torch.from_numpy(by_hand(large()).transpose(2, 0, 1)))
    enlarged = bench.checkpoint.encode_picture(resize_picture(shown.pixels, 128, 128, "Lanczos"))
    expected = bench.checkpoint.draft(enlarged).pixels
    # A number may fall to the other side of a whole one.
    np.testing.assert_allclose(made[0].image.astype(int), expected, rtol=0, atol=3)


def test_a_picture_that_cannot_be_encoded_ends_its_own_job() -> None:
    def fault(what: str, _: Any) -> None:
        if what == "encode picture":
            raise NumericFailure("The VAE gives NaN or infinity even in float32.")

    bench = Bench(FakeCheckpoint("fake", fault=fault))
    bench.checkpoint.paints = True
    bad, good = bench.add(large(hires_upscaler="None"), large(seed=2))
    bench.run()
    with pytest.raises(NumericFailure):
        bad.future.result(0)
    good.future.result(0)


def test_a_size_that_does_not_fit_is_refused_before_the_first_pass() -> None:
    bench = Bench()
    bad, good = bench.add(large(width=1024, height=1024, hires_scale=4), large())
    bench.run()
    with pytest.raises(DoesNotFit, match="4096x4096"):
        bad.future.result(0)
    good.future.result(0)
    assert len(bench.checkpoint.forwards) == 2 * FIRST


@pytest.mark.parametrize("upscaler", LATENT_UPSCALERS)
def test_latents_are_resized_in_float32(upscaler: str) -> None:
    latent = torch.arange(4 * 6 * 6).view(4, 6, 6) / 7
    made = resize_latent(latent.half(), 9, 12, upscaler)
    assert (made.dtype, made.shape) == (torch.float32, (4, 12, 9))
    assert torch.equal(resize_latent(latent, 6, 6, upscaler), latent)


@pytest.mark.parametrize("upscaler", ["None", "Lanczos", "Nearest"])
@pytest.mark.parametrize("size", [(24, 24), (40, 20), (8, 16), (17, 25), (16, 16)])
def test_pictures_are_resized_to_the_pixel(upscaler: str, size: tuple[int, int]) -> None:
    picture = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8)
    made = resize_picture(picture, *size, upscaler)
    assert (made.dtype, made.shape) == (torch.uint8, (size[1], size[0], 3))
    if size == (16, 16):
        assert torch.equal(made, picture)
    if upscaler == "Nearest" and size == (24, 24):
        assert {*made.flatten().tolist()} <= {*picture.flatten().tolist()}

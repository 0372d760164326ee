"""Jobs with different samplers, schedules, steps and noise share forwards and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import InvalidInput
from farm.spec.samplers import SAMPLERS
from farm.worker.engine.requests import Condition, Denoise, EncodeText, Made
from farm.worker.engine.runner import Runner
from farm.worker.engine.slot import Slot
from farm.worker.samplers import compile_program
from tests.by_hand import by_hand
from tests.engine_bench import Bench, alone
from tests.fake_models import ALPHAS, FakeCheckpoint, spec

CROWD = [
    spec("a", 1, sampler="Euler", s_churn=10, s_tmax=8.0, steps=6),
    spec("b", 2, sampler="Euler a", eta=0.5, eta_noise_seed_delta=31337, steps=5),
    spec("c", 3, sampler="Heun", steps=4, cfg_scale=1.0),
    spec("d", 4, sampler="DPM2 a", rng="NV", steps=3),
    spec("e", 5, sampler="DPM++ 2M SDE Karras", steps=7),
    spec("f", 6, sampler="DPM++ SDE", rng="NV", steps=4, scheduler="sgm_uniform"),
    spec("g", 7, sampler="DPM++ 3M SDE Exponential", steps=6, cfg_scale=1.0),
    spec("h", 8, sampler="UniPC", steps=6, variation_seed=9, variation_strength=0.3),
    spec("i", 9, sampler="PLMS", steps=5),
    spec("j", 10, sampler="LMS Karras", steps=6, zero_terminal_snr=True),
    spec("k", 11, sampler="LCM", steps=3, seed_resize_from_width=32, seed_resize_from_height=96),
    spec("l", 12, sampler="Restart", steps=20),
    spec("m", 13, sampler="DPM fast", steps=5, sgm_noise_multiplier=True),
    spec("n", 14, sampler="DPM++ 3M SDE", steps=1),
    spec("o", 15, sampler="Euler a CFG++", steps=5, cfg_scale=0.6, negative_prompt="fog"),
]


def test_a_crowd_of_all_kinds_gets_what_each_gets_by_hand() -> None:
    bench = Bench(rows=32)
    for job, made in zip(CROWD, bench.render(*CROWD), strict=True):
        np.testing.assert_allclose(made.image, by_hand(job), rtol=0, atol=2e-4, err_msg=str(job))
        assert made.stats.steps == job.steps
    # The slowest alone decides how often the model is called.
    assert len(bench.checkpoint.forwards) == 2 * 20 - 1


@pytest.mark.parametrize("levels", [{"s_tmax": 2.0}, {"s_tmin": 2.0}, {}])
def test_churn_that_begins_late_or_ends_early_is_the_same_with_nobody_else_there(
    levels: dict[str, float],
) -> None:
    job = spec("a", 1, sampler="Euler", s_churn=10, steps=6, **levels)
    np.testing.assert_allclose(alone(job), by_hand(job), rtol=0, atol=2e-4)


def test_every_sampler_takes_few_steps_beside_all_others() -> None:
    names = [name for name in SAMPLERS if name != "DPM adaptive"]
    jobs = [
        spec(name, seed, sampler=name, steps=steps, cfg_scale=1.0 + steps)
        for seed, name in enumerate(names)
        for steps in (1, 2, 3)
    ]
    bench = Bench(rows=256)
    for job, made in zip(jobs, bench.render(*jobs), strict=True):
        np.testing.assert_allclose(made.image, by_hand(job), rtol=0, atol=5e-4, err_msg=str(job))
    assert len(bench.checkpoint.forwards) == 2 * 3 - 1


def test_cfg_pp_renews_the_negative_prompt_s_noise_whatever_the_guidance() -> None:
    bench = Bench()
    job = spec("a cat", sampler="Euler a CFG++", steps=3, cfg_scale=1.0, negative_prompt="fog")
    other = job.model_copy(update={"negative_prompt": "rain"})
    images = [made.image for made in bench.render(job, other)]
    assert sorted(bench.checkpoint.encoded) == ["a cat", "fog", "rain"]
    assert not np.allclose(*images)
    np.testing.assert_allclose(images[0], by_hand(job), rtol=0, atol=2e-4)


def test_who_joins_at_another_step_changes_nobody() -> None:
    bench = Bench(rows=32)
    for job in CROWD:
        bench.add(job)
        bench.run(turns=2)
    bench.run()
    for job, joined in zip(CROWD, bench.jobs, strict=True):
        image = joined.future.result(0).image
        np.testing.assert_allclose(image, alone(job), rtol=0, atol=1e-5, err_msg=str(job))


@pytest.mark.parametrize("place", range(0, len(CROWD), 4))
def test_a_strict_job_is_bit_equal_among_other_samplers(place: int) -> None:
    strict = CROWD[place].model_copy(update={"strict": True})
    crowd = Bench().render(*CROWD[:place], strict, *CROWD[place + 1 :])
    assert np.array_equal(crowd[place].image, alone(strict))


def test_the_adaptive_sampler_shares_forwards_and_reaches_what_many_steps_do() -> None:
    adaptive = spec("a", 1, sampler="DPM adaptive", eta=0.0)
    random = spec("b", 2, sampler="k_dpm_ad", s_noise=1.0)
    bench = Bench(rows=32)
    made = bench.render(adaptive, *CROWD[:4], random)
    exact = alone(spec("a", 1, sampler="DPM++ 2M", steps=150))
    np.testing.assert_allclose(made[0].image, exact, rtol=0, atol=0.1)
    for job, crowded in ((adaptive, made[0]), (random, made[-1])):
        np.testing.assert_allclose(crowded.image, alone(job), rtol=0, atol=1e-5)
        assert crowded.stats.steps > 2
    assert len(bench.checkpoint.forwards) == max(m.stats.forwards for m in made)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"sigma_max": 0.01}, "sigma_max"),
        ({"sigma_min": 50.0, "scheduler": "karras"}, "sigma_min"),
        ({"rho": 100.0, "scheduler": "polyexponential", "steps": 50}, "rho"),
    ],
)
def test_a_schedule_that_leads_nowhere_ends_its_own_job_only(
    wrong: dict[str, Any], field: str
) -> None:
    bench = Bench()
    good, bad = bench.add(spec("a", 1), spec("b", 2, **wrong))
    bench.run()
    with pytest.raises(InvalidInput, match="do not fall") as refused:
        bad.future.result(0)
    assert refused.value.field == field
    np.testing.assert_allclose(good.future.result(0).image, by_hand(good.spec), rtol=0, atol=2e-4)


def test_progress_counts_steps_as_the_user_does() -> None:
    told: list[tuple[int, int]] = []
    bench = Bench(on_progress=lambda key, done, steps: told.append((done, steps)))
    job = bench.add(spec(sampler="Heun", steps=7))[0]
    job.due = lambda seconds: True  # type: ignore[method-assign]
    bench.run()
    assert {steps for _, steps in told} == {7}
    assert [done for done, _ in told] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7]


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "Heun"])
def test_a_step_tried_again_uses_the_same_noise(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slot() -> Slot:
        text = Condition(Made(EncodeText("fake", ("a",)), checkpoint.encode("a")))
        request = Denoise(
            checkpoint="fake", width=64, height=64, sampler=sampler, steps=4,
            prompt=(text,), negative=None, cfg_scale=1.0, seed=3,
        )  # fmt: skip
        return Slot(request, compile_program(sampler, 4, ALPHAS), torch.device("cpu"))

    def step(slot: Slot) -> None:
        Runner(torch.device("cpu")).step(checkpoint, [slot], bucket=1, blocks=1)

    checkpoint: Any = FakeCheckpoint("fake")
    tried, straight = slot(), slot()
    while not straight.finished:
        with monkeypatch.context() as patch:
            patch.setattr("farm.worker.engine.runner.download", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                step(tried)
        step(tried)
        step(straight)
    assert torch.equal(tried.registers, straight.registers)


def test_every_sampler_is_documented_with_its_settings() -> None:
    page = (Path(__file__).parents[2] / "docs" / "samplers.md").read_text()
    for name in SAMPLERS:
        assert f"`{name}`" in page

"""Compiled samplers: what every table must be, and what options do to it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from farm.errors import InvalidInput
from farm.spec.fields import MAX_STEPS
from farm.spec.samplers import SAMPLERS, SCHEDULERS, SECOND_ORDER, sampler_name
from farm.spec.sampling import MAX_SIGMA, SamplingOptions
from farm.worker.samplers import Program, compile_program
from farm.worker.samplers.algebra import A, B, C, D, U, X, Z
from tests import analytic
from tests.fake_models import ALPHAS

STEPS = [1, 2, 3, 20, MAX_STEPS]
ADAPTIVE = "DPM adaptive"
"""Decides its calls while it goes, and not by the number of steps."""
TABLES = [name for name in SAMPLERS if name != ADAPTIVE]
ENDS_NOISY = {"UniPC", "TCD", "DPM fast", ADAPTIVE}
"""Their authors stop at the model's lowest noise level."""


def compiled(sampler: str, steps: int = 20, skipped: int | None = None, **options: Any) -> Program:
    return compile_program(
        sampler, steps, ALPHAS, options=SamplingOptions(**options), skipped=skipped
    )


def base(name: str) -> str:
    return name.removesuffix(" Karras").removesuffix(" Exponential")


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", TABLES)
def test_every_sampler_goes_down_at_any_number_of_steps(name: str, steps: int) -> None:
    program = compiled(name, steps)
    assert program.name == name
    assert program.total == steps
    assert list(program.done) == sorted(program.done)
    _, high = program.levels
    for step in program.steps:
        assert 0 < step.sigma <= high
        assert 0 <= step.t <= 999
        assert np.isfinite(step.update).all()
    calls = {True: 2 * steps - 1, False: steps + (base(name) == "PLMS" and steps > 1)}
    assert len(program.steps) == calls[name in SECOND_ORDER]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_that_knows_the_picture_is_believed(name: str, steps: int) -> None:
    end = analytic.run(compiled(name, steps), lambda x, sigma: analytic.PICTURE)[-1]
    slack = 0.1 if base(name) in ENDS_NOISY else 1e-4 if name == "LCM" else 1e-12
    np.testing.assert_allclose(end, analytic.PICTURE, rtol=0, atol=slack)


@pytest.mark.parametrize("name", SAMPLERS)
def test_many_steps_end_at_one_of_the_pictures(name: str) -> None:
    end = analytic.run(compiled(name, MAX_STEPS))[-1]
    off = min(np.abs(end - analytic.PICTURE).max(), np.abs(end + analytic.PICTURE).max())
    # The pictures themselves are blurred.
    assert off < 4 * analytic.SPREAD


@pytest.mark.parametrize("name", TABLES)
def test_one_step_is_the_model_s_estimate(name: str) -> None:
    program = compiled(name, 1)
    assert len(program.steps) == 1
    assert program.steps[0].draw is None or name == "DPM fast"
    start, end = analytic.run(program)
    estimate = analytic.denoised(start, program.steps[0].sigma)
    slack = 0.1 if name in ENDS_NOISY else 1e-6
    np.testing.assert_allclose(end, estimate, rtol=0, atol=slack)


@pytest.mark.parametrize("steps", [2, 3, 20, MAX_STEPS])
@pytest.mark.parametrize("name", [name for name in SAMPLERS if base(name) not in ENDS_NOISY])
def test_the_last_update_leaves_no_noise(name: str, steps: int) -> None:
    last = compiled(name, steps).steps[-1]
    noise = Z.weights.index(1)
    assert last.x.weights[noise] == 0
    assert last.draw is None


@pytest.mark.parametrize("name", ["Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE Karras", "DDIM"])
def test_without_eta_nothing_is_random(name: str) -> None:
    assert not any(step.draw for step in compiled(name, eta=0.0).steps)
    assert any(step.draw for step in compiled(name, eta=0.5).steps)


def test_ddim_without_eta_is_euler_and_with_all_of_it_euler_a() -> None:
    for eta, other in ((0.0, "Euler"), (1.0, "Euler a")):
        ours = compiled("DDIM", eta=eta)
        theirs = compiled(other, scheduler="ddim", sgm_noise_multiplier=True)
        assert ours.start == theirs.start
        np.testing.assert_allclose(analytic.run(ours), analytic.run(theirs), rtol=0, atol=1e-12)


def test_cfg_pp_is_euler_a_where_both_prompts_agree() -> None:
    ours, theirs = compiled("Euler a CFG++"), compiled("Euler a")
    assert ours.steps != theirs.steps
    np.testing.assert_allclose(analytic.run(ours), analytic.run(theirs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("taken", [1, 2, 3, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_an_image_may_begin_anywhere_in_the_schedule(name: str, taken: int) -> None:
    whole, program = compiled(name, 30), compiled(name, 30, 30 - taken)
    assert program.total == taken
    assert program.levels == whole.levels
    assert program.start.noise == program.steps[0].sigma
    picture = analytic.PICTURE
    end = analytic.run(program, lambda *_: picture, picture)[-1]
    slack = 0.1 if base(name) in ENDS_NOISY else 1e-2 if name == "LCM" else 1e-12
    np.testing.assert_allclose(end, picture, rtol=0, atol=slack)
    low, high = program.levels
    spans = [step.draw.between for step in program.steps if step.draw and step.draw.between]
    assert all(low <= following < sigma <= high for sigma, following in spans)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if base(name) not in ENDS_NOISY])
def test_the_last_step_alone_is_the_model_s_estimate(name: str) -> None:
    program = compiled(name, 20, 19)
    assert len(program.steps) == 1
    start, end = analytic.run(program, begun=analytic.BEGUN)
    assert compiled(name, 20).steps[-1].sigma == pytest.approx(program.steps[0].sigma)
    estimate = analytic.denoised(start, program.steps[0].sigma)
    np.testing.assert_allclose(end, estimate, rtol=0, atol=2e-2 if name == "LCM" else 1e-12)


def test_noise_beside_a_latent_is_as_strong_as_its_level() -> None:
    for name in ("DDIM", "Euler"):
        program = compiled(name, 20, 0, sgm_noise_multiplier=True)
        assert program.start.noise == program.steps[0].sigma
        assert program.steps == compiled(name, 20).steps


@pytest.mark.parametrize("skipped", [-1, 20, 21])
def test_beyond_the_schedule_there_is_nothing_to_begin_with(skipped: int) -> None:
    with pytest.raises(InvalidInput, match="no step to begin with") as refused:
        compiled("Euler", 20, skipped)
    assert (refused.value.field, refused.value.value) == ("skipped", skipped)
    assert refused.value.remedy == "Skip 0 to 19 steps."


def test_who_asks_for_the_same_gets_the_same_program() -> None:
    program = compiled("Euler a", 20)
    assert compiled("k_euler_a", 20) is program
    for other in (
        compiled("Euler a", 21),
        compiled("Euler a", 20, 0),
        compiled("Euler a", 20, eta=0.5),
        compile_program("Euler a", 20, ALPHAS[:900]),
        compile_program("Euler a", 20, ALPHAS, family="sdxl"),
    ):
        assert other is not program
    # What a pilot decides is one image's alone.
    assert compiled(ADAPTIVE).pilot is not compiled(ADAPTIVE).pilot


def test_a_table_has_the_numbers_of_every_step() -> None:
    program = compiled("Heun", 4, s_churn=5)
    assert program.table is program.table
    for row, step in zip(program.table, program.steps, strict=True):
        assert row[:2].tolist() == [step.sigma, step.t]
        assert row[2:].reshape(4, 7).tolist() == [list(each) for each in step.update]


def test_the_brownian_path_is_asked_within_its_levels_from_high_to_low() -> None:
    for name in (name for name in SAMPLERS if "SDE" in name):
        program = compiled(name)
        spans = [step.draw.between for step in program.steps if step.draw and step.draw.between]
        low, high = program.levels
        assert spans
        assert all(low <= following < sigma <= high for sigma, following in spans)


@pytest.mark.parametrize(
    ("options", "sigmas"),
    [
        ({}, "14.61 … 0.02917"),
        ({"sigma_min": 0.1, "sigma_max": 10.0}, "10.00 … 0.1000"),
        ({"discard_penultimate": True}, "14.61 … 0.04731"),
        ({"zero_terminal_snr": True}, "4519. … 0.02917"),
    ],
)
def test_options_of_the_schedule(options: dict[str, Any], sigmas: str) -> None:
    steps = compiled("Euler", 20, scheduler="karras", **options).steps
    assert f"{steps[0].sigma:#.4g} … {steps[-1].sigma:#.4g}" == sigmas


def test_churn_raises_the_level_before_each_step_within_its_bounds() -> None:
    plain = [step.sigma for step in compiled("Euler").steps]
    churned = [step.sigma for step in compiled("Euler", s_churn=5, s_tmin=1, s_tmax=8).steps]
    factors = [after / before for before, after in zip(plain, churned, strict=True)]
    inside = [1 <= sigma <= 8 for sigma in plain]
    assert factors == pytest.approx([1.25 if churns else 1 for churns in inside])
    assert compiled("Euler", s_churn=5).start.churn == pytest.approx(plain[0] * 0.75)
    assert compiled("Euler a", s_churn=5) == compiled("Euler a")


def test_options_of_the_start() -> None:
    sigma = compiled("Euler").start.noise
    assert compiled("Euler", sgm_noise_multiplier=True).start.noise == (1 + sigma**2) ** 0.5
    assert compiled("Euler", sgm_noise_multiplier=True).steps == compiled("Euler").steps


def test_the_adaptive_sampler_reports_its_progress_as_steps() -> None:
    program = compiled(ADAPTIVE, 20)
    analytic.run(program)
    assert program.total == 20
    assert len(program.done) == len(program.steps) > 3
    assert list(program.done) == sorted(program.done)
    assert 0 == program.done[0] < program.done[-1] < 20


def test_an_adaptive_sampler_that_meets_no_number_ends() -> None:
    pilot = compiled(ADAPTIVE).pilot
    assert pilot
    pilot.judge(float("nan"))
    assert pilot.ended


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("k_euler_a", "Euler a"),
        ("euler A", "Euler a"),
        ("k_dpmpp_2m_sde_ka", "DPM++ 2M SDE Karras"),
        ("dpm++  2m karras", "DPM++ 2M Karras"),
    ],
)
def test_a_sampler_is_known_as_people_write_it(written: str, name: str) -> None:
    assert compiled(written).name == name


WEBUI = {
    "k_dpmpp_2m_ka": "DPM++ 2M Karras",
    "k_dpmpp_sde_ka": "DPM++ SDE Karras",
    "k_dpmpp_2m_sde_exp": "DPM++ 2M SDE Exponential",
    "k_dpmpp_2m_sde_ka": "DPM++ 2M SDE Karras",
    "k_euler_a": "Euler a",
    "k_euler": "Euler",
    "k_lms": "LMS",
    "k_heun": "Heun",
    "k_dpm_2": "DPM2",
    "k_dpm_2_a": "DPM2 a",
    "k_dpmpp_2s_a": "DPM++ 2S a",
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_sde": "DPM++ SDE",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE",  # which has the Karras one's alias there
    "k_dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "k_dpmpp_2m_sde_heun_ka": "DPM++ 2M SDE Heun Karras",
    "k_dpmpp_2m_sde_heun_exp": "DPM++ 2M SDE Heun Exponential",
    "k_dpmpp_3m_sde": "DPM++ 3M SDE",
    "k_dpmpp_3m_sde_ka": "DPM++ 3M SDE Karras",
    "k_dpmpp_3m_sde_exp": "DPM++ 3M SDE Exponential",
    "k_dpm_fast": "DPM fast",
    "k_dpm_ad": "DPM adaptive",
    "k_lms_ka": "LMS Karras",
    "k_dpm_2_ka": "DPM2 Karras",
    "k_dpm_2_a_ka": "DPM2 a Karras",
    "k_dpmpp_2s_a_ka": "DPM++ 2S a Karras",
    "restart": "Restart",
    "ddim": "DDIM",
    "plms": "PLMS",
    "unipc": "UniPC",
    "k_lcm": "LCM",
}
"""webui 1.8's samplers by their aliases; Euler a has another, ``k_euler_ancestral``."""


def test_all_of_webui_s_names_and_aliases_are_known() -> None:
    assert len(WEBUI) == 31
    assert {alias: sampler_name(alias) for alias in WEBUI} == WEBUI
    assert [sampler_name(name) for name in WEBUI.values()] == list(WEBUI.values())
    assert sampler_name("k_euler_ancestral") == "Euler a"
    assert SAMPLERS.keys() - set(WEBUI.values()) == {"TCD", "Euler a CFG++"}


@pytest.mark.parametrize(
    ("sampler", "steps", "options", "field", "remedy"),
    [
        ("Oiler", 20, {}, "sampler", "Euler a"),
        ("Euler", 0, {}, "steps", "at least 1"),
        ("Euler", 20, {"sigma_max": 0.01}, "sigma_max", "sigma_min well below sigma_max"),
        ("Euler", 20, {"sigma_min": 50.0, "scheduler": "karras"}, "sigma_min", "Leave sigma_min"),
    ],
)
def test_nonsense_is_refused_by_name(
    sampler: str, steps: int, options: dict[str, Any], field: str, remedy: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        compiled(sampler, steps, **options)
    assert refused.value.field == field
    assert refused.value.value in (sampler, steps, *options.values())
    assert remedy in (refused.value.remedy or "")


LEVEL = st.none() | st.floats(1e-3, MAX_SIGMA)


@given(
    sampler=st.sampled_from(list(SAMPLERS)),
    steps=st.integers(1, 40),
    options=st.fixed_dictionaries(
        {
            "scheduler": st.sampled_from(list(SCHEDULERS)),
            "eta": st.none() | st.floats(0, 5),
            "s_churn": st.floats(0, 1000),
            "s_tmin": st.floats(0, 10),
            "s_noise": st.floats(0, 10),
            "sigma_min": LEVEL,
            "sigma_max": LEVEL,
            "rho": st.none() | st.floats(0.1, 100),
            "discard_penultimate": st.booleans(),
            "zero_terminal_snr": st.booleans(),
        }
    ),
)
@settings(max_examples=100)
def test_whatever_the_options_a_table_is_sound_or_refused(
    sampler: str, steps: int, options: dict[str, Any]
) -> None:
    try:
        program = compiled(sampler, steps, **options)
    except (InvalidInput, ValidationError):
        return
    assert len(program.done) == len(program.steps) > 0
    low, high = program.levels
    assert 0 < low <= high
    for step in program.steps:
        assert step.sigma > 0
        assert np.isfinite(step.update).all()


def test_sums_are_vectors() -> None:
    total = (X - D) / 2 + Z * 3 - 0.5 * A + (B + C + U) * 0
    assert total.weights == (0.5, -0.5, 0, 0, -0.5, 0, 3)
    assert repr(total) == "0.5·X + -0.5·A + -0.5·D + 3·Z"
    assert total == X / 2 - D / 2 + Z * 3 - A / 2
    assert total != X
    assert len({total, X, X * 1.0}) == 2


def test_samplers_batcher_and_recipes_do_without_torch() -> None:
    pure = "samplers", "engine.batcher", "engine.requests", "recipes.txt2img"
    modules = ", ".join(f"farm.worker.{name}" for name in pure)
    script = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", script], check=True)

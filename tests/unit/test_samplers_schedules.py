"""Noise levels: which a model has, and which a schedule visits."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import CheckpointError, InvalidInput
from farm.spec.samplers import SCHEDULERS, scheduler_name
from farm.worker.samplers.model_sigmas import ModelSigmas, zero_terminal_snr
from farm.worker.samplers.schedules import SCHEDULES, Span
from tests.fake_models import ALPHAS

MODEL = ModelSigmas(ALPHAS)
SPAN = Span(MODEL.smallest, MODEL.largest)
STEPS = [1, 2, 3, 20, 150, 1000, 1500]
"""As many as a thousand and more, where only the end of a schedule is taken."""


def levels(name: str, steps: int, model: ModelSigmas = MODEL, span: Span = SPAN) -> list[float]:
    return SCHEDULES[name](model, steps, span)


def timesteps(name: str, steps: int) -> list[float]:
    return [round(MODEL.timestep(sigma), 6) for sigma in levels(name, steps) if sigma > 0]


def test_the_range_is_the_one_stable_diffusion_is_known_for() -> None:
    assert MODEL.smallest == pytest.approx(0.0291672, abs=1e-6)
    assert MODEL.largest == pytest.approx(14.6146, abs=1e-4)


def test_a_trained_timestep_has_the_sigma_of_its_signal() -> None:
    for t in (0, 1, 500, 999):
        sigma = sqrt((1 - ALPHAS[t]) / ALPHAS[t])
        assert MODEL.sigma(t) == pytest.approx(sigma, rel=1e-12)
        assert MODEL.timestep(sigma) == pytest.approx(t, abs=1e-9)


def test_between_timesteps_the_logarithm_is_straight() -> None:
    middle = exp((log(MODEL.sigma(400)) + log(MODEL.sigma(401))) / 2)
    assert MODEL.sigma(400.5) == pytest.approx(middle, rel=1e-12)
    assert MODEL.timestep(middle) == pytest.approx(400.5, abs=1e-9)


@pytest.mark.parametrize(("sigma", "t"), [(1e-6, 0.0), (1e6, 999.0)])
def test_outside_the_range_the_nearest_timestep_counts(sigma: float, t: float) -> None:
    assert MODEL.timestep(sigma) == t


@given(st.floats(0, 999))
def test_sigma_and_timestep_undo_each_other(t: float) -> None:
    assert MODEL.timestep(MODEL.sigma(t)) == pytest.approx(t, abs=1e-6)


def test_every_schedule_a_job_may_ask_for_is_there() -> None:
    assert set(SCHEDULERS) - {"automatic"} <= set(SCHEDULES)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_falls_from_the_top_to_the_bottom(name: str, steps: int) -> None:
    sigmas = levels(name, steps)
    assert len(sigmas) == steps + 1
    assert all(before > after for before, after in pairwise(sigmas))
    assert sigmas[-1] == (pytest.approx(MODEL.smallest) if name in ("tcd", "unipc") else 0)
    if name == "ddim":
        assert MODEL.timestep(sigmas[0]) >= min(1000 - 1000 / steps, 999 - 1e-6)
    else:
        assert sigmas[0] == pytest.approx(MODEL.largest, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uniform", [999, 666, 333, 0]),
        ("sgm_uniform", [999, 749.25, 499.5, 249.75]),
        ("simple", [999, 749, 499, 249]),
        ("ddim", [751, 501, 251, 1]),
        ("unipc", [999, 749.25, 499.5, 249.75, 0]),
        ("tcd", [999, 759, 499, 259, 0]),
        ("lcm", [999, 672.333333, 345.666667, 19]),
    ],
)
def test_timesteps_of_four_steps(name: str, expected: list[float]) -> None:
    # Between the timesteps it learnt, lcm's levels are those of a coarser table.
    slack = 0.1 if name == "lcm" else 1e-5
    assert timesteps(name, 4) == pytest.approx(expected, abs=slack)


@pytest.mark.parametrize("rho", [None, 3.0])
def test_karras_is_the_formula_of_the_paper(rho: float | None) -> None:
    n, low, high, power = 7, 0.1, 10.0, rho or 7
    expected = [
        (high ** (1 / power) + i / (n - 1) * (low ** (1 / power) - high ** (1 / power))) ** power
        for i in range(n)
    ]
    assert levels("karras", n, span=Span(low, high, rho))[:-1] == pytest.approx(expected, rel=1e-12)


def test_exponential_falls_by_the_same_factor_each_step() -> None:
    sigmas = levels("exponential", 5)[:-1]
    factors = [after / before for before, after in pairwise(sigmas)]
    assert factors == pytest.approx([factors[0]] * 4, rel=1e-12)


def test_polyexponential_is_a_power_of_the_exponential_s_share() -> None:
    sigmas = levels("polyexponential", 5, span=Span(1.0, exp(4), 2.0))[:-1]
    assert [log(sigma) for sigma in sigmas] == pytest.approx([4, 2.25, 1, 0.25, 0], abs=1e-12)
    assert levels("polyexponential", 5) == pytest.approx(levels("exponential", 5))


def test_beta_spreads_the_span_by_quantiles_of_its_distribution() -> None:
    # scipy.stats.beta.ppf([1, .9, .75, .5, .1, .001, 0], .6, .6), scipy 1.17
    known = {0.9: 0.9604155944112, 0.75: 0.8243196213473, 0.1: 0.0395844055888}
    for steps, place, share in ((11, 1, 0.9), (5, 1, 0.75), (11, 9, 0.1)):
        sigma = levels("beta", steps, span=Span(1.0, 2.0))[place]
        assert sigma - 1 == pytest.approx(known[share], abs=1e-9)
    assert levels("beta", 3, span=Span(1.0, 2.0)) == pytest.approx([2, 1.5, 1, 0])


@pytest.mark.parametrize(
    ("family", "second"), [("sd15", 6.475), ("sd2", 6.475), ("sdxl", 6.315), ("ssd1b", 6.315)]
)
def test_align_your_steps_has_a_table_for_each_family(family: str, second: float) -> None:
    model = ModelSigmas(ALPHAS, family)
    eleven = levels("align_your_steps", 11, model)
    assert eleven[0] == pytest.approx(14.615)
    assert eleven[1] == pytest.approx(second)
    assert eleven[-2] == pytest.approx(0.029)
    assert levels("align_your_steps", 21, model)[1] == pytest.approx(sqrt(14.615 * second))


@pytest.mark.parametrize("name", ["uniform", "sgm_uniform", "karras", "exponential", "beta"])
def test_a_span_is_kept_to(name: str) -> None:
    sigmas = levels(name, 6, span=Span(0.2, 5.0))
    assert sigmas[0] == pytest.approx(5.0)
    assert sigmas[-2] >= 0.2 - 1e-9


def test_zero_terminal_snr_leaves_the_beginning_and_ends_in_noise() -> None:
    stretched = zero_terminal_snr(ALPHAS)
    model = ModelSigmas(stretched)
    assert stretched[0] == pytest.approx(ALPHAS[0], rel=1e-12)
    assert model.largest == pytest.approx(4518.8, abs=0.1)
    roots, old = np.sqrt(stretched), np.sqrt(ALPHAS)
    assert roots[500] == pytest.approx((old[500] - old[-1]) * old[0] / (old[0] - old[-1]))


@pytest.mark.parametrize(
    ("written", "name"),
    [("SGM Uniform", "sgm_uniform"), ("karras", "karras"), ("Align Your Steps", "align_your_steps"),
     ("Normal", "uniform"), ("Automatic", "automatic")],
)  # fmt: skip
def test_a_schedule_is_known_as_people_write_it(written: str, name: str) -> None:
    assert scheduler_name(written) == name


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no schedule 'linear'") as refused:
        scheduler_name("linear")
    assert refused.value.field == "scheduler"
    assert "karras" in (refused.value.remedy or "")


@pytest.mark.parametrize(
    "alphas",
    [[], [0.5], [0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.9, 0.0], [0.9, float("nan")]],
)
def test_a_schedule_that_is_none_is_refused(alphas: list[float]) -> None:
    with pytest.raises(CheckpointError, match="noise schedule"):
        ModelSigmas(alphas)

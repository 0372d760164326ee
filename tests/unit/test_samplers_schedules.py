"""Noise levels: which a model has, and which a schedule visits."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.errors import CheckpointError
from farm.worker.samplers.schedules import ModelSigmas, exponential, karras, uniform
from tests.fake_models import ALPHAS

MODEL = ModelSigmas(ALPHAS)
SCHEDULES = [uniform, karras, exponential]
STEPS = [1, 2, 3, 20, 150]


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


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_falls_from_the_largest_sigma_to_zero(schedule, steps: int) -> None:
    sigmas = schedule(MODEL, steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(MODEL.largest, rel=1e-12)
    assert sigmas[-1] == 0
    assert all(before > after for before, after in pairwise(sigmas))
    if steps > 1:
        assert sigmas[-2] == pytest.approx(MODEL.smallest, rel=1e-12)


def test_uniform_spaces_timesteps_evenly() -> None:
    timesteps = [MODEL.timestep(sigma) for sigma in uniform(MODEL, 4)[:-1]]
    assert timesteps == pytest.approx([999, 666, 333, 0], abs=1e-9)


def test_karras_is_the_formula_of_the_paper() -> None:
    n, rho, low, high = 7, 7.0, MODEL.smallest, MODEL.largest
    expected = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ]
    assert karras(MODEL, n)[:-1] == pytest.approx(expected, rel=1e-12)


def test_exponential_falls_by_the_same_factor_each_step() -> None:
    sigmas = exponential(MODEL, 5)[:-1]
    factors = [after / before for before, after in pairwise(sigmas)]
    assert factors == pytest.approx([factors[0]] * 4, rel=1e-12)


@pytest.mark.parametrize(
    "alphas",
    [[], [0.5], [0.5, 0.9], [0.9, 0.9], [1.0, 0.5], [0.9, 0.0], [0.9, float("nan")]],
)
def test_a_schedule_that_is_none_is_refused(alphas: list[float]) -> None:
    with pytest.raises(CheckpointError, match="noise schedule"):
        ModelSigmas(alphas)

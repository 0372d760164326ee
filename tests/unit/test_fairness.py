"""Shares and costs: who is next, and what a job is thought to take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.dispatch.cost import FIRST_RATE, Costs, units
from farm.dispatch.fairness import Shares
from farm.spec.job import JobSpec


def test_charges_add_up_by_weight() -> None:
    shares = Shares()
    shares.level([1, 2], [1, 2])
    shares.charge(1, 10.0, 1.0)
    shares.charge(2, 10.0, 2.0)
    shares.charge(1, -4.0, 1.0)
    assert shares.level([1, 2], [1, 2]) == {1: 6.0, 2: 5.0}


def test_who_comes_new_starts_level_with_the_fairest() -> None:
    shares = Shares()
    shares.level([1, 2], [1, 2])
    shares.charge(1, 100.0, 1.0)
    shares.charge(2, 70.0, 1.0)
    assert shares.level([1, 2, 3], [1, 2, 3])[3] == 70.0


def test_idle_time_is_no_credit_and_debts_are_kept() -> None:
    shares = Shares()
    shares.level([1, 2], [1, 2])
    shares.charge(1, 500.0, 1.0)
    shares.level([2], [2])
    shares.charge(2, 100.0, 1.0)
    assert shares.level([1, 2], [1, 2]) == {1: 500.0, 2: 100.0}
    shares.level([1], [1])
    shares.charge(1, 500.0, 1.0)
    assert shares.level([1, 2], [1, 2]) == {1: 1000.0, 2: 1000.0}


def test_alone_after_everybody_left_one_starts_where_the_last_stood() -> None:
    shares = Shares()
    shares.level([1], [1])
    shares.charge(1, 50.0, 1.0)
    shares.level([], [])
    assert shares.level([2], [2]) == {2: 50.0}


@given(st.lists(st.sets(st.integers(1, 4), min_size=1), max_size=20), st.floats(0.1, 100))
def test_times_never_go_back_and_nobody_is_behind_who_came_later(
    rounds: list[set[int]], cost: float
) -> None:
    shares = Shares()
    last: dict[int, float] = {}
    for active in rounds:
        times = shares.level(active, active)
        assert all(times[user] >= last.get(user, 0.0) for user in active)
        last |= times
        shares.charge(min(active, key=lambda user: times[user]), cost, 1.0)


def spec(**fields: object) -> JobSpec:
    values = {"checkpoint": "c", "width": 512, "height": 512, "steps": 20, "seed": 1, **fields}
    return JobSpec.model_validate(values)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, 40.0),
        ({"cfg_scale": 1}, 20.0),
        ({"steps": 10}, 20.0),
        ({"width": 1024, "height": 1024}, 160.0),
    ],
)
def test_the_size_of_a_job(fields: dict[str, object], size: float) -> None:
    assert units(spec(**fields)) == size


def test_costs_are_learnt_by_checkpoint_and_guessed_for_new_ones() -> None:
    costs = Costs()
    assert costs.estimate("a", 40.0) == 40.0 * FIRST_RATE
    for _ in range(50):
        costs.learn("a", 40.0, 4.0)
    assert costs.estimate("a", 20.0) == pytest.approx(2.0)
    assert costs.estimate("new", 20.0) == pytest.approx(2.0)
    costs.learn("a", 40.0, 8.0)
    assert 2.0 < costs.estimate("a", 20.0) < 2.5

"""Forecasts: when shared work is done, and what past errors make of that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.dispatch.forecast import PRIOR, WORTH, Cards, TrackRecord, Work, alone, finish_times

ONE = Cards(1, 1.0)


def work(id: int, seconds: float, *, user: int = 0, priority: int = 50, jobs: int = 1000) -> Work:
    return Work(id, user, priority, seconds, jobs)


@pytest.mark.parametrize(
    ("works", "weights", "cards", "ends"),
    [
        ([work(1, 100)], {}, ONE, {1: 100}),
        ([work(1, 100)], {}, Cards(4, 4.0), {1: 25}),
        ([work(1, 100)], {}, Cards(2, 4.0), {1: 25}),
        ([work(1, 100), work(2, 100, user=1)], {}, ONE, {1: 200, 2: 200}),
        # Who has more does not hold up who has less; who has less is gone soon.
        ([work(1, 100), work(2, 1000, user=1)], {}, ONE, {1: 200, 2: 1100}),
        (
            [work(1, 100), work(2, 10, user=1), work(3, 50, user=2)],
            {},
            ONE,
            {1: 160, 2: 30, 3: 110},
        ),
        ([work(1, 100), work(2, 1000, user=1)], {1: 3.0}, ONE, {1: 400, 2: 1100}),
        # One user's batches one after the other: by priority, then by age.
        ([work(1, 10), work(2, 20), work(3, 5, priority=60)], {}, ONE, {3: 5, 1: 15, 2: 35}),
        # Classes are strict.
        (
            [work(1, 50, priority=10), work(2, 30), work(3, 5, user=1, priority=90)],
            {},
            ONE,
            {3: 5, 2: 35, 1: 85},
        ),
        # No job runs on two cards, and three jobs on two cards take two rounds.
        ([work(1, 8, jobs=1)], {}, Cards(4, 4.0), {1: 8}),
        ([work(1, 9, jobs=3)], {}, Cards(2, 2.0), {1: 6}),
        ([work(1, 0)], {}, ONE, {1: 0}),
    ],
)
def test_when_work_is_done(
    works: list[Work], weights: dict[int, float], cards: Cards, ends: dict[float, float]
) -> None:
    assert finish_times(works, weights, cards) == pytest.approx(ends)


@pytest.mark.parametrize(
    ("seconds", "load", "number"),
    [(100.0, 0.0, 8), (100.0, 100.0, 1), (4 * WORTH, 1.0, 4), (100 * WORTH, 1.0, 8)],
)
def test_cards_that_would_load_longer_than_they_work_do_not_help(
    seconds: float, load: float, number: int
) -> None:
    one = Work(1, 0, 50, seconds, 8_000_000, load)
    assert finish_times([one], {}, Cards(8, 8.0)) == pytest.approx({1: seconds / number})


WORKS = st.lists(
    st.builds(
        work,
        st.integers(1, 10**6),
        st.floats(0, 1e5),
        user=st.integers(0, 4),
        priority=st.integers(0, 100),
        jobs=st.integers(1, 5000),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one.batch_id,
)


@given(WORKS, st.dictionaries(st.integers(0, 4), st.floats(0.1, 10)), st.integers(1, 9))
def test_a_batch_ends_between_alone_and_after_everybody(
    works: list[Work], weights: dict[int, float], number: int
) -> None:
    cards = Cards(number, float(number))
    ends = finish_times(works, weights, cards)
    everything = sum(one.seconds for one in works) / number
    for one in works:
        least = alone(one, cards)
        assert least * (1 - 1e-9) <= ends[one.batch_id]
        assert ends[one.batch_id] <= max(everything, least) * (1 + 1e-9) + 1e-6
    assert max(ends.values()) >= everything * (1 - 1e-9)


@given(WORKS, st.floats(0, 1e5))
def test_background_work_holds_nobody_up(works: list[Work], seconds: float) -> None:
    urgent = [one for one in works if one.priority >= 30]
    more = [*works, work(0, seconds, user=9, priority=0)]
    before, after = finish_times(works, {}, ONE), finish_times(more, {}, ONE)
    for one in urgent:
        assert after[one.batch_id] == pytest.approx(before[one.batch_id])


def test_before_anything_is_known_the_middle_is_the_model() -> None:
    eta = TrackRecord().eta(100.0)
    assert eta.p50 == pytest.approx(100.0)
    assert eta.p90 > 120.0
    assert list(PRIOR) == sorted(PRIOR)


def test_a_farm_that_is_always_late_learns_it_for_batches_of_that_length() -> None:
    late = TrackRecord([(100.0, 200.0)] * 50 + [(100.0, 300.0)] * 10 + [(0.0, 5.0)])
    assert late.eta(100.0).p50 == pytest.approx(200.0)
    assert late.eta(100.0).p90 == pytest.approx(300.0)
    assert late.eta(5000.0).p50 == pytest.approx(5000.0)
    assert late.eta(1.0).p50 == pytest.approx(1.0)

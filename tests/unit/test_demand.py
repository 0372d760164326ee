"""How many cards a checkpoint should have, and has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.dispatch.demand import CATCH_UP, LEVEL, MOST, WORTH, shared
from farm.dispatch.queues import Queues, Run
from farm.dispatch.snapshot import Claimant, Seat, Snapshot
from farm.dispatch.supply import Supply
from farm.dispatch.waiting import Waiting


@pytest.mark.parametrize(
    ("wanted", "warm", "lacking", "idle"),
    [
        ({"a": 1.0}, [[]], "a", [True]),
        ({"a": 1.0}, [["a"]], "", [False]),
        ({"a": 2.0}, [["a"], []], "a", [False, True]),
        ({"a": 1.2, "b": 1.2}, [["a", "b"]], "ab", [False]),
        # The second card has a alone, so the first is left to b.
        ({"a": 1.0, "b": 1.0}, [["a", "b"], ["a"]], "", [False, False]),
        ({"a": 0.2, "b": 1.0}, [["a"], ["b"]], "", [True, False]),
        # What nobody wants is no use of a card.
        ({"a": 1.0}, [["c"], ["a"]], "", [True, False]),
        ({"a": 0.1}, [[]], "a", [True]),
    ],
)
def test_supply(
    wanted: dict[str, float], warm: list[list[str]], lacking: str, idle: list[bool]
) -> None:
    supply = Supply(wanted, warm)
    assert "".join(name for name in wanted if supply.lacks(name)) == lacking
    assert [supply.idles(number) for number in range(len(warm))] == idle


def test_a_load_fills_the_gap() -> None:
    supply = Supply({"a": 2.0}, [["a"], [], []])
    supply.load(1, "a")
    assert not supply.lacks("a")
    assert (supply.idles(1), supply.idles(2)) == (False, True)


@given(
    st.floats(0, 100),
    st.dictionaries(st.integers(1, 9), st.tuples(st.floats(0.1, 10), st.floats(0, 50)), min_size=1),
)
def test_shares_are_by_weight_and_within_what_is_wanted(
    amount: float, users: dict[int, tuple[float, float]]
) -> None:
    weights = {user: weight for user, (weight, _) in users.items()}
    most = {user: wanted for user, (_, wanted) in users.items()}
    got = shared(amount, weights, most)
    assert all(got[user] <= most[user] + 1e-9 for user in users)
    assert sum(got.values()) == pytest.approx(min(amount, sum(most.values())))
    short = [got[user] / weights[user] for user in users if got[user] < most[user] - 1e-9]
    assert max(short, default=0.0) == pytest.approx(min(short, default=0.0))


@pytest.mark.parametrize(
    ("behind", "times"),
    [
        (0.0, 1.0),
        (LEVEL, 1.0),  # as good as level
        (LEVEL + CATCH_UP, 2.0),
        (1e6, MOST),
        (-LEVEL - CATCH_UP / 2, 0.5),
        (-1e6, 0.0),
    ],
)
def test_who_is_behind_is_counted_for_more(behind: float, times: float) -> None:
    seats = [Seat(f"s{number}", f"s{number}", 4, 0) for number in range(8)]
    runs = [Run(user, str(user), 50, 1000, user=user, cost=10.0, load=10.0) for user in (1, 2, 3)]
    users = {3: Claimant(-behind * len(seats) / 3)}
    wanted = Waiting(Snapshot(seats, Queues().of(runs), users)).wanted
    assert wanted["3"] == pytest.approx(8 * times / (2 + times))
    assert sum(wanted.values()) == pytest.approx(8)


@pytest.mark.parametrize(("others", "cards"), [(5, 3.0), (0, 8.0)])
def test_no_more_cards_are_wanted_than_loads_are_worth(others: int, cards: float) -> None:
    seats = [Seat(f"s{number}", f"s{number}", 4, 0) for number in range(8)]
    runs = [Run(1, "a", 50, 12, cost=WORTH * 10.0 / 4, load=10.0)]
    if others:  # who have enough to do for the rest
        runs.append(Run(2, "b", 50, 1000, user=2, cost=100.0, load=10.0))
    wanted = Waiting(Snapshot(seats, Queues().of(runs))).wanted
    # Cards that would have nothing to do load for less.
    assert wanted["a"] == pytest.approx(cards)
    assert sum(wanted.values()) == pytest.approx(8.0)

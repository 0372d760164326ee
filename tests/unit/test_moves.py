from __future__ import annotations

import pytest

from farm.spec.moves import ENDED, IN_FLIGHT, TABLE, Move, State, Verdict, judge


@pytest.mark.parametrize(
    ("failure_class", "failures", "verdict"),
    [
        ("input", 0, Verdict(Move.FAIL, 1)),
        ("missing asset", 0, Verdict(Move.FAIL, 1)),
        ("does not fit", 0, Verdict(Move.FAIL, 1)),
        ("numeric", 0, Verdict(Move.FAIL, 1)),
        ("worker", 0, Verdict(Move.RETRY, 1, delay=1.0)),
        ("worker", 1, Verdict(Move.RETRY, 2, delay=2.0)),
        ("worker", 2, Verdict(Move.FAIL, 3)),
        ("infrastructure", 0, Verdict(Move.RETRY, 0, delay=15.0)),
        ("infrastructure", 2, Verdict(Move.RETRY, 2, delay=15.0)),
    ],
)
def test_the_class_of_a_failure_decides_its_budget(
    failure_class: str, failures: int, verdict: Verdict
) -> None:
    assert judge(failure_class, failures) == verdict


def test_only_what_is_in_flight_can_end_with_an_image() -> None:
    assert set(TABLE[Move.SUCCEED]) <= IN_FLIGHT


def test_every_state_but_the_last_ones_can_be_left() -> None:
    left = {state for moves in TABLE.values() for state in moves}
    assert left == set(State) - ENDED | {State.FAILED}


def test_only_what_failed_can_be_tried_again() -> None:
    assert TABLE[Move.REPEAT] == {State.FAILED: State.WAITING}


def test_every_state_can_be_reached() -> None:
    reached = {state for moves in TABLE.values() for state in moves.values()}
    assert reached == set(State) - {State.PENDING}

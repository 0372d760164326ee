"""What no policy can do better: by hand, and against every schedule of tiny farms."""

from __future__ import annotations

from itertools import chain, combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.dispatch.simulator import bounds
from farm.dispatch.simulator.fluid import fair_loads
from farm.dispatch.simulator.trace import Batch, Card, Checkpoint, Part, Trace, User

MINUTE = 60


def trace(batches: list[Batch], *, cards: int, room: int = 9) -> Trace:
    """Cards of speed 1 that hold ``room`` checkpoints of size 1."""
    names = {part.checkpoint for batch in batches for part in batch.parts}
    return Trace(
        cards=tuple(Card(f"c{number}", "card", 1.0, room, 4) for number in range(cards)),
        checkpoints={name: Checkpoint(name, 1, 5.0) for name in sorted(names)},
        users={batch.user: User(batch.user) for batch in batches},
        batches=tuple(batches),
    )


def batch(user: int, checkpoint: str, jobs: int, *, at: float = 0.0) -> Batch:
    return Batch(at, user, 50, (Part(checkpoint, jobs, 10.0),))


def test_bounds_by_hand() -> None:
    two = trace([batch(1, "a", 10), batch(1, "b", 3, at=100.0)], cards=2, room=2)
    assert bounds.makespan(two) == 115.0  # 30 s of work from 100 s on, on two cards
    assert bounds.loads(two, 115.0) == 2
    assert bounds.loads(two, 60.0) == 3  # 100 s of a within 60 s take two cards
    # All ten jobs at once have both cards for 50 s, but no minute needs more than 100/60 of one.
    assert fair_loads(two) == 3


def test_a_user_who_has_all_cards_for_a_minute_needs_them_all() -> None:
    assert fair_loads(trace([batch(1, "a", 100)], cards=8)) == 8
    assert fair_loads(trace([batch(1, "a", 48), batch(2, "b", 48)], cards=8)) == 8


Minute = tuple[tuple[str, float], ...]
"""Seconds of work of each checkpoint in a minute."""


def fewest_loads(minutes: list[Minute], cards: int) -> int:
    """Of all ways to have checkpoints on cards, the fewest loads with which each minute's work can
    be done in it. Loads take no time, nothing is ever dropped, and jobs can be divided at will, so
    no real schedule does with less."""
    names = sorted({name for minute in minutes for name, _ in minute})
    pairs = list(product(range(cards), names))
    for count in range(len(pairs) + 1):
        for held in combinations(pairs, count):
            if all(_feasible(minute, held) for minute in minutes):
                return count
    raise AssertionError("more work than cards")


def _feasible(minute: Minute, held: tuple[tuple[int, str], ...]) -> bool:
    """Hall: any of the checkpoints have enough cards among them for their work."""
    for some in chain.from_iterable(combinations(minute, n) for n in range(1, len(minute) + 1)):
        names = {name for name, _ in some}
        able = {card for card, name in held if name in names}
        if sum(seconds for _, seconds in some) > MINUTE * len(able) + 1e-6:
            return False
    return True


def exact_shares(wanted: list[list[tuple[str, int]]], cards: int) -> tuple[Trace, list[Minute]]:
    """Users who each have work for every minute, on a checkpoint of theirs at a time, and what a
    schedule with exact shares does in each minute.

    Args:
        wanted: of each user, (checkpoint, minutes) one after the other.
    """
    each = cards * MINUTE / len(wanted)
    batches, minutes = [], []
    for user, sweeps in enumerate(wanted, 1):
        parts = [Part(name, 10, long * each / 10) for name, long in sweeps]
        batches.append(Batch(0.0, user, 50, tuple(parts)))
    lasting = [[name for name, long in sweeps for _ in range(long)] for sweeps in wanted]
    for names in zip(*lasting, strict=True):
        minutes.append(tuple((name, each * names.count(name)) for name in sorted(set(names))))
    return trace(batches, cards=cards), minutes


SWEEPS = st.sampled_from(
    [
        [("a", 3)],
        [("b", 3)],
        [("a", 1), ("b", 2)],
        [("b", 2), ("a", 1)],
        [("c", 1), ("a", 2)],
        [("a", 1), ("b", 1), ("c", 1)],
        [("c", 2), ("b", 1)],
    ]
)


@settings(max_examples=40)
@given(st.lists(SWEEPS, min_size=1, max_size=4), st.integers(2, 3))
def test_no_schedule_with_exact_shares_loads_less(
    wanted: list[list[tuple[str, int]]], cards: int
) -> None:
    made, minutes = exact_shares(wanted, cards)
    assert fair_loads(made) <= fewest_loads(minutes, cards)


@pytest.mark.parametrize(
    ("wanted", "cards", "fewest", "bound"),
    [
        ([[("a", 2)]], 3, 3, 3),
        ([[("a", 2)], [("b", 2)]], 2, 2, 2),
        ([[("a", 1), ("b", 1)], [("b", 1), ("a", 1)]], 2, 2, 2),
        ([[("a", 1), ("b", 1)]], 3, 6, 6),
        # Three have two thirds of a card each, and one of them must have parts of both.
        ([[("a", 2)], [("b", 2)], [("c", 2)]], 2, 4, 3),
    ],
)
def test_fair_loads_are_met_or_nearly(
    wanted: list[list[tuple[str, int]]], cards: int, fewest: int, bound: int
) -> None:
    made, minutes = exact_shares(wanted, cards)
    assert (fewest_loads(minutes, cards), fair_loads(made)) == (fewest, bound)

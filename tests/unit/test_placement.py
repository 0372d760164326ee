"""place(snapshot): who gets what."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.db.leases import Claim
from farm.dispatch.placement import PATIENCE, Run, Seat, Snapshot, place


def seat(name: str, *, capacity: int = 4, held: int = 0, warm: str = "") -> Seat:
    return Seat(name, name, capacity, held, frozenset(warm.split()))


def run(batch: int, checkpoint: str = "a", *, count: int = 1, **fields: object) -> Run:
    return Run(batch, checkpoint, fields.pop("priority", 50), count, **fields)  # type: ignore[arg-type]


def placed(seats: list[Seat], runs: list[Run]) -> list[tuple[int, str, int]]:
    claims = place(Snapshot(seats, runs))
    return sorted((c.batch_id, c.session_id, c.count or len(c.ords)) for c in claims)


@pytest.mark.parametrize(
    ("seats", "runs", "expected"),
    [
        ([], [run(1)], []),
        ([seat("s")], [], []),
        ([seat("s", held=4)], [run(1)], []),
        ([seat("s")], [run(1, count=2)], [(1, "s", 2)]),
        ([seat("s")], [run(1, count=9)], [(1, "s", 4)]),
        # Work spreads over the least loaded sessions.
        ([seat("s"), seat("t")], [run(1, count=2)], [(1, "s", 1), (1, "t", 1)]),
        ([seat("s", held=2), seat("t")], [run(1, count=2)], [(1, "t", 2)]),
        # First come, first served.
        ([seat("s", capacity=1)], [run(1), run(2)], [(1, "s", 1)]),
        # A warm checkpoint goes before an older cold one ...
        ([seat("s", capacity=1, warm="b")], [run(1), run(2, "b")], [(2, "s", 1)]),
        # ... but not before a more important one, nor one that has waited too long.
        ([seat("s", capacity=1, warm="b")], [run(1, priority=60), run(2, "b")], [(1, "s", 1)]),
        (
            [seat("s", capacity=1, warm="b")],
            [run(1, waited=PATIENCE + 1), run(2, "b")],
            [(1, "s", 1)],
        ),
        # A failed job goes elsewhere while there is another worker.
        ([seat("s"), seat("t")], [run(1, ord=3, avoid="s")], [(1, "t", 1)]),
        ([seat("s")], [run(1, ord=3, avoid="s")], [(1, "s", 1)]),
        ([seat("s"), seat("t", held=4)], [run(1, ord=3, avoid="s")], []),
        # A suspect waits for an empty session and gets it to itself.
        ([seat("s", held=1)], [run(1, ord=3, alone=True)], []),
        ([seat("s")], [run(1, ord=3, alone=True), run(2)], [(1, "s", 1)]),
    ],
)
def test_places(seats: list[Seat], runs: list[Run], expected: list[tuple[int, str, int]]) -> None:
    assert placed(seats, runs) == expected


def test_retries_are_claimed_by_number() -> None:
    assert place(Snapshot([seat("s")], [run(7, ord=3), run(7, ord=5)])) == [
        Claim(7, "s", ords=(3, 5))
    ]


runs_of_any_kind = st.lists(
    st.builds(
        Run,
        batch_id=st.integers(1, 5),
        checkpoint=st.sampled_from("abc"),
        priority=st.sampled_from([10, 50]),
        count=st.integers(1, 6),
        waited=st.floats(0, 100),
    ),
    max_size=8,
    unique_by=lambda found: found.batch_id,
)
some_seats = st.lists(
    st.builds(
        seat,
        st.sampled_from("stuv"),
        capacity=st.integers(1, 5),
        held=st.integers(0, 5),
        warm=st.sampled_from(["", "a", "b c"]),
    ),
    max_size=4,
    unique_by=lambda found: found.session_id,
)


@given(some_seats, runs_of_any_kind)
def test_no_session_is_overfilled_and_no_place_stays_empty(
    seats: list[Seat], runs: list[Run]
) -> None:
    claims = place(Snapshot(seats, runs))
    given_to = Counter[str]()
    taken = Counter[int]()
    for claim in claims:
        given_to[claim.session_id] += claim.count
        taken[claim.batch_id] += claim.count
    free = {s.session_id: max(0, s.capacity - s.held) for s in seats}
    assert all(count <= free[session] for session, count in given_to.items())
    assert all(taken[run.batch_id] <= run.count for run in runs)
    waiting = sum(run.count for run in runs)
    assert sum(given_to.values()) == min(waiting, sum(free.values()))

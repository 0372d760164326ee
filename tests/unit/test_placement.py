"""place(snapshot): who gets what."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.db.leases import Claim
from farm.dispatch.demand import LITTLE_WORTH
from farm.dispatch.placement import PATIENCE, SLACK, place
from farm.dispatch.queues import Kind, Queues, Run
from farm.dispatch.snapshot import Claimant, Seat, Snapshot
from farm.dispatch.waiting import BURST
from farm.spec.batch import INTERACTIVE_EXTRA, INTERACTIVE_FROM


def seat(
    name: str, *, capacity: int = 4, held: int = 0, warm: str = "", can_load: str | None = None
) -> Seat:
    has = None if can_load is None else frozenset(can_load.split())
    return Seat(name, name, capacity, held, frozenset(warm.split()), has, ahead=float(held))


def run(batch: int, checkpoint: str = "a", *, count: int = 1, **fields: object) -> Run:
    return Run(batch, checkpoint, fields.pop("priority", 50), count, **fields)  # type: ignore[arg-type]


def placed(seats: list[Seat], runs: list[Run]) -> list[tuple[int, str, int]]:
    claims = place(Snapshot(seats, Queues().of(runs))).claims
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
            [run(1, passed=2 * PATIENCE + 1), run(2, "b")],
            [(1, "s", 1)],
        ),
        # A failed job goes elsewhere while there is another worker.
        ([seat("s"), seat("t")], [run(1, first=3, retry=True, avoid="s")], [(1, "t", 1)]),
        ([seat("s")], [run(1, first=3, retry=True, avoid="s")], [(1, "s", 1)]),
        ([seat("s"), seat("t", held=4)], [run(1, first=3, retry=True, avoid="s")], []),
        # A checkpoint is loaded where there is one.
        ([seat("s", can_load="b"), seat("t", can_load="a")], [run(1, count=9)], [(1, "t", 4)]),
        ([seat("s", can_load="b")], [run(1)], []),
        ([seat("s", can_load="b")], [run(1), run(2, "b")], [(2, "s", 1)]),
        # A suspect waits for an empty session and gets it to itself.
        ([seat("s", held=1)], [run(1, first=3, retry=True, alone=True)], []),
        ([seat("s")], [run(1, first=3, retry=True, alone=True), run(2)], [(1, "s", 1)]),
    ],
)
def test_places(seats: list[Seat], runs: list[Run], expected: list[tuple[int, str, int]]) -> None:
    assert placed(seats, runs) == expected


def test_retries_are_claimed_by_number() -> None:
    assert place(
        Snapshot(
            [seat("s")],
            Queues().of([run(7, first=3, retry=True), run(7, first=5, retry=True)]),
        )
    ).claims == [Claim(7, "s", ords=(3, 5))]


def shared_out(users: dict[int, Claimant], *, places: int, **fields: object) -> Counter[int]:
    """Jobs by user when each user has plenty and so many places are free."""
    runs = [run(user, count=100, user=user, **fields) for user in users]
    claims = place(Snapshot([seat("s", capacity=places)], Queues().of(runs), users)).claims
    return Counter({claim.batch_id: claim.count for claim in claims})


def test_users_share_evenly_whoever_came_first() -> None:
    assert shared_out({1: Claimant(), 2: Claimant(), 3: Claimant()}, places=9) == {1: 3, 2: 3, 3: 3}


def test_by_weight() -> None:
    assert shared_out({1: Claimant(weight=2.0), 2: Claimant()}, places=9) == {1: 6, 2: 3}


def test_who_has_had_more_waits_until_the_others_are_level() -> None:
    assert shared_out({1: Claimant(time=4.0), 2: Claimant()}, places=8) == {1: 2, 2: 6}


def test_costly_jobs_count_for_more() -> None:
    runs = [run(1, count=100, user=1, cost=3.0), run(2, count=100, user=2, cost=1.0)]
    claims = place(Snapshot([seat("s", capacity=8)], Queues().of(runs))).claims
    assert {claim.batch_id: claim.count for claim in claims} == {1: 2, 2: 6}


def test_a_cap_leaves_the_rest_to_others() -> None:
    assert shared_out({1: Claimant(room=2), 2: Claimant()}, places=9) == {1: 2, 2: 7}
    assert shared_out({1: Claimant(room=0)}, places=9) == {}


def test_one_users_many_batches_are_no_larger_share() -> None:
    runs = [*(run(batch, user=1, count=10) for batch in range(1, 9)), run(9, user=2, count=10)]
    claims = place(Snapshot([seat("s", capacity=8)], Queues().of(runs))).claims
    assert sum(claim.count for claim in claims if claim.batch_id == 9) == 4


def test_within_a_user_the_more_important_batch_goes_first() -> None:
    runs = [run(2, user=1, count=5, priority=60), run(1, user=1, count=5)]
    assert placed([seat("s")], runs) == [(2, "s", 4)]


@pytest.mark.parametrize(("above", "below"), [(90, 50), (50, 10), (80, 79), (30, 29)])
def test_a_higher_class_goes_first_whoever_has_had_less(above: int, below: int) -> None:
    runs = [run(1, user=1, priority=below, count=9), run(2, user=2, priority=above, count=9)]
    users = {2: Claimant(time=50.0)}
    claims = place(Snapshot([seat("s")], Queues().of(runs), users)).claims
    assert {claim.batch_id for claim in claims} == {2}


def test_a_number_within_a_class_moves_only_ones_own_batches() -> None:
    runs = [run(1, user=1, priority=79, count=9), run(2, user=2, priority=31, count=9)]
    claims = place(Snapshot([seat("s")], Queues().of(runs))).claims
    assert {claim.batch_id: claim.count for claim in claims} == {1: 2, 2: 2}


def test_interactive_is_no_way_to_get_ahead_of_others_for_long() -> None:
    runs = [run(1, user=1, priority=90, count=9), run(2, user=2, count=9)]
    users = {1: Claimant(time=BURST)}
    claims = place(Snapshot([seat("s")], Queues().of(runs), users)).claims
    assert [(claim.batch_id, claim.count) for claim in claims] == [(2, 4)]


@pytest.mark.parametrize(("ahead", "expected"), [(SLACK - 1, 2), (SLACK + 1, 1)])
def test_a_warm_checkpoint_buys_a_bounded_share(ahead: float, expected: int) -> None:
    runs = [run(1, "a", user=1), run(2, "b", user=2)]
    claims = place(
        Snapshot([seat("s", capacity=1, warm="b")], Queues().of(runs), {2: Claimant(time=ahead)})
    ).claims
    assert [claim.batch_id for claim in claims] == [expected]


def test_backlogged_users_get_equal_gpu_seconds_whatever_their_jobs_cost() -> None:
    costs = {1: 0.3, 2: 1.0, 3: 7.0, 4: 25.0}
    times = dict.fromkeys(costs, 0.0)
    warm = ""
    for _ in range(600):
        runs = [run(user, str(user), user=user, count=9, cost=cost) for user, cost in costs.items()]
        users = {user: Claimant(time) for user, time in times.items()}
        (claim,) = place(
            Snapshot([seat("s", capacity=1, warm=warm)], Queues().of(runs), users)
        ).claims
        times[claim.batch_id] += costs[claim.batch_id]
        warm = str(claim.batch_id)
    jain = sum(times.values()) ** 2 / (len(times) * sum(time**2 for time in times.values()))
    assert jain > 0.97, times


runs_of_any_kind = st.lists(
    st.builds(
        Run,
        batch_id=st.integers(1, 5),
        checkpoint=st.sampled_from("abc"),
        priority=st.sampled_from([10, 50, 60, 90]),
        count=st.integers(1, 6),
        passed=st.floats(0, 100),
        user=st.integers(1, 3),
        cost=st.floats(0, 2),
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


some_users = st.dictionaries(
    st.integers(1, 3), st.builds(Claimant, st.floats(0, 1000), st.floats(0.1, 10))
)


@given(some_seats, runs_of_any_kind, some_users)
def test_no_session_is_overfilled_and_no_place_stays_empty(
    seats: list[Seat], runs: list[Run], users: dict[int, Claimant]
) -> None:
    claims = place(Snapshot(seats, Queues().of(runs), users)).claims
    given_to = Counter[str]()
    taken = Counter[int]()
    for claim in claims:
        given_to[claim.session_id] += claim.count
        taken[claim.batch_id] += claim.count
    urgent = {run.batch_id for run in runs if run.priority >= INTERACTIVE_FROM}
    free = {s.session_id: max(0, s.capacity - s.held) for s in seats}
    most = {s.session_id: max(0, s.capacity + INTERACTIVE_EXTRA - s.held) for s in seats}
    assert all(count <= most[session] for session, count in given_to.items())
    assert all(taken[run.batch_id] <= run.count for run in runs)
    waiting = sum(run.count for run in runs)
    placed = sum(given_to.values())
    assert placed >= min(waiting, sum(free.values()))
    if placed > sum(free.values()):
        assert all(claim.batch_id in urgent for claim in claims if not free[claim.session_id])


@pytest.mark.parametrize(
    ("held", "urgent", "expected"),
    [
        (4, 9, [(2, "s", INTERACTIVE_EXTRA)]),  # full: only the extra places
        (4 + INTERACTIVE_EXTRA, 9, []),
        (3, 1, [(2, "s", 1)]),  # they count: no place is left for others
        (2, 1, [(1, "s", 1), (2, "s", 1)]),
    ],
)
def test_interactive_jobs_find_places_that_others_do_not(
    held: int, urgent: int, expected: list[tuple[int, str, int]]
) -> None:
    runs = [run(1, count=9, user=1), run(2, count=urgent, priority=90, user=2)]
    assert placed([seat("s", held=held)], runs) == expected


RED, BLUE = (("red", 1.0),), (("blue", 0.5),)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        # The same LoRAs and size before the same LoRAs, that before the same checkpoint.
        ([run(1, shape=(512, 768)), run(2, loras=RED), run(3, loras=RED, shape=(512, 512))], 3),
        ([run(1, shape=(512, 512)), run(2, loras=RED), run(3, loras=BLUE)], 2),
        ([run(1, shape=(64, 64)), run(2, loras=BLUE)], 1),
        # But not before a more important one.
        ([run(1, priority=60), run(2, loras=RED, shape=(512, 512))], 1),
    ],
)
def test_what_is_like_the_last_goes_first(runs: list[Run], expected: int) -> None:
    here = replace(seat("s", capacity=1, warm="a"), last=Kind("a", RED, (512, 512)))
    assert placed([here], runs) == [(expected, "s", 1)]


@pytest.mark.parametrize(
    ("seat_tags", "asked", "goes"),
    [("", "", True), ("red", "", True), ("red blue", "red", True), ("red", "red blue", False)],
)
def test_tags(seat_tags: str, asked: str, goes: bool) -> None:
    here = replace(seat("s"), tags=frozenset(seat_tags.split()))
    assert bool(placed([here], [run(1, tags=frozenset(asked.split()))])) is goes


@pytest.mark.parametrize(("pixels", "goes"), [(0, True), (100, True), (101, False)])
def test_room_on_the_card(pixels: int, goes: bool) -> None:
    here = replace(seat("s"), fits={"a": 100})
    assert bool(placed([here], [run(1, largest={"a": pixels})])) is goes


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        # An idle card loads for two loads of work a card, and not for less.
        (LITTLE_WORTH * 10 * 2, {"s", "t"}),
        (LITTLE_WORTH * 10, {"s"}),
    ],
)
def test_a_checkpoint_is_loaded_once_more_if_that_is_worth_it(
    count: float, expected: set[str]
) -> None:
    seats = [seat("s", warm="a", capacity=2), seat("t", capacity=2)]
    claims = placed(seats, [run(1, count=int(count), load=10.0)])
    assert {session for _, session, _ in claims} == expected


def test_no_card_idles_for_the_sake_of_a_first_batch_that_is_not_worth_another_load() -> None:
    seats = [seat("s", warm="a", held=4), seat("t")]
    few, many = run(1, "a", count=1, load=10.0), run(2, "b", count=99, load=10.0)
    assert placed(seats, [few, many]) == [(2, "t", 4)]
    # Its user wants a more important one before it, so it stays where it is.
    assert placed(seats, [replace(few, priority=60), many]) == []


@pytest.mark.parametrize(("seconds", "expected"), [(19.0, []), (21.0, [(1, "t", 4)])])
def test_urgent_jobs_load_once_more_for_two_loads_of_work(
    seconds: float, expected: list[tuple[int, str, int]]
) -> None:
    assert LITTLE_WORTH == 2.0
    full = seat("s", warm="a", held=4 + INTERACTIVE_EXTRA)
    urgent = run(1, "a", count=4, cost=seconds / 4, load=10.0, priority=90)
    assert [claim[:2] for claim in placed([full, seat("t")], [urgent])] == [
        claim[:2] for claim in expected
    ]


def test_a_busy_card_loads_nothing_that_others_hold() -> None:
    seats = [seat("s", warm="a", held=2, capacity=4), seat("t", warm="b", capacity=4)]
    runs = [run(1, "a", count=900, load=10.0, user=1), run(2, "b", count=900, load=10.0, user=2)]
    users = {2: Claimant(time=SLACK + 20)}  # further ahead than a warm checkpoint buys
    assert (2, "t", 4) in placed_among(seats, runs, users)


def test_who_was_passed_over_is_told() -> None:
    runs = [run(1, "a", user=1), run(2, "b", user=2)]
    found = place(
        Snapshot([seat("s", capacity=1, warm="b")], Queues().of(runs), {2: Claimant(time=1.0)})
    )
    assert [claim.batch_id for claim in found.claims] == [2]
    assert found.passed == {(1, 0)}


def test_a_card_that_waits_for_a_holder_passes_over_too() -> None:
    seats = [seat("s", warm="a", held=4), seat("t")]
    found = place(Snapshot(seats, Queues().of([run(1, count=1, load=10.0)])))
    assert (found.claims, found.passed) == ([], {(1, 0)})
    patient = run(1, count=1, load=10.0, passed=PATIENCE + 1)
    assert placed(seats, [patient]) == [(1, "t", 1)]


@pytest.mark.parametrize(
    "other", [{"fits": {"a": 8}}, {"tags": frozenset({"red"})}, {"can_load": frozenset({"b"})}]
)
def test_nobody_waits_for_a_holder_that_could_not_make_it(other: dict[str, object]) -> None:
    holder = replace(seat("s", warm="a"), **other)  # type: ignore[arg-type]
    free = replace(seat("t"), tags=frozenset({"blue"}))
    wanted = run(1, load=10.0, largest={"a": 9}, tags=frozenset({"blue"}))
    assert placed([holder, free], [wanted]) == [(1, "t", 1)]


def test_little_is_sent_ahead_and_to_the_fastest_card() -> None:
    slow, fast = seat("s", capacity=8), replace(seat("t", capacity=8), speed=4.0)
    assert placed([slow, fast], [run(1, count=1, cost=8.0)]) == [(1, "t", 1)]
    found = placed([slow, fast], [run(1, count=99, cost=8.0)])
    assert found == [(1, "s", 4), (1, "t", 8)], "half of what it may hold, or 20 seconds"


def placed_among(
    seats: list[Seat], runs: list[Run], users: dict[int, Claimant]
) -> list[tuple[int, str, int]]:
    claims = place(Snapshot(seats, Queues().of(runs), users)).claims
    return [(claim.batch_id, claim.session_id, claim.count) for claim in claims]


@pytest.mark.parametrize(
    ("has", "needs", "suits"),
    [
        (None, {"four"}, True),
        (frozenset(), set(), True),
        (frozenset(), {"four"}, False),
        (frozenset({"four", "two"}), {"four"}, True),
        (frozenset({"two"}), {"four", "two"}, False),
    ],
)
def test_a_model_that_enlarges_must_be_on_the_host(
    has: frozenset[str] | None, needs: set[str], suits: bool
) -> None:
    card = replace(seat("s"), upscalers=has)
    assert card.suits(run(1, upscalers=frozenset(needs))) is suits
    assert bool(placed([card], [run(1, upscalers=frozenset(needs))])) is suits

"""The leader's accounts: charged when placed, corrected when ended, learnt from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm.db.backlog import Entitled, Spent
from farm.db.leases import Lease
from farm.db.rates import Measured
from farm.dispatch.accounts import Accounts
from farm.dispatch.cost import FIRST_RATE
from farm.dispatch.queues import Queues, Run
from farm.dispatch.snapshot import Seat, Snapshot

RUNS = [Run(user, "a", 50, 1, user=user, cost=10.0, size=20.0) for user in (1, 2)]
USERS = [Entitled(1, 1.0, None, 0), Entitled(2, 2.0, 5, 3)]


def placed(accounts: Accounts, user: int, *, cost: float = 10.0, ord: int = 0) -> None:
    run = replace(RUNS[0], batch_id=user, first=ord, user=user, cost=cost)
    users = accounts.claimants(USERS, Queues().of(RUNS))
    accounts.charge(
        [Lease(user, ord, 1, "s")], Snapshot([Seat("s", "s", 1, 0)], Queues().of([run]), users)
    )


def ended(user: int, seconds: float | None, result: str = "succeeded", ord: int = 0) -> Spent:
    return Spent(user, ord, 1, result, seconds)


def times(accounts: Accounts) -> tuple[float, float]:
    claimants = accounts.claimants(USERS, Queues().of(RUNS))
    return claimants[1].time, claimants[2].time


def test_a_job_is_charged_by_weight_when_it_is_placed() -> None:
    accounts = Accounts()
    placed(accounts, 1)
    placed(accounts, 2)
    assert times(accounts) == (10.0, 5.0)


@pytest.mark.parametrize(
    ("result", "seconds", "time"),
    [
        ("succeeded", 25.0, 25.0),
        ("failed", 3.0, 3.0),
        ("release", None, 0.0),  # it never ran
        ("lost", None, 10.0),  # nobody knows what it took
    ],
)
def test_when_it_has_ended_it_costs_what_it_took(
    result: str, seconds: float | None, time: float
) -> None:
    accounts = Accounts()
    placed(accounts, 1)
    for _ in range(2):  # seen twice, it is settled once
        accounts.settle([ended(1, seconds, result)])
    assert times(accounts)[0] == time


def test_only_what_succeeded_teaches_what_jobs_cost() -> None:
    accounts = Accounts()
    placed(accounts, 1)
    accounts.settle([ended(1, 0.001, "failed")])
    assert accounts.costs.estimate("a", 20.0) == 20.0 * FIRST_RATE
    placed(accounts, 1, ord=1)
    accounts.settle([ended(1, 40.0, ord=1)])
    assert accounts.costs.estimate("a", 20.0) == pytest.approx(40.0)


def test_what_an_upscaler_took_is_learnt_of_that() -> None:
    accounts = Accounts()
    placed(accounts, 1)
    told = {"upscaler": "4x", "upscaled": 0.5, "upscale_seconds": 30.0}
    accounts.settle([replace(ended(1, 40.0), **told)])
    assert times(accounts)[0] == 40.0
    assert accounts.costs.estimate("a", 20.0) == pytest.approx(10.0)
    assert accounts.costs.estimate("a", 20.0, {"4x": 0.5}) == pytest.approx(40.0)


def test_a_new_leader_begins_with_what_is_known() -> None:
    accounts = Accounts()
    accounts.begin(Measured({"a": 2.0, "b": 4.0}, {"a": 7.0}))
    assert accounts.costs.estimate("a", 10.0) == 20.0
    assert accounts.costs.estimate("unheard of", 10.0) == 30.0


def test_a_cap_leaves_room_for_what_is_not_in_flight() -> None:
    claimants = Accounts().claimants(USERS, Queues().of(RUNS))
    assert (claimants[1].room, claimants[2].room) == (None, 2)


def test_what_was_placed_before_somebody_else_led_holds_no_place() -> None:
    accounts = Accounts()
    placed(accounts, 1)
    assert accounts.ahead("s") == 10.0
    accounts.begin(Measured())
    assert accounts.ahead("s") == 0.0
    accounts.settle([ended(1, 25.0)])
    assert times(accounts)[0] == 10.0

"""kill -9 of every process in the middle of a batch: every job ends with exactly one image."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from farm.broker.progress import client_url
from farm.client import Batch
from farm.embedded import sockets
from farm.errors import Unavailable
from tests.conftest import eventually
from tests.wholefarm import WholeFarm

JOBS = 24


@pytest.fixture(scope="module")
def farm(short_folder: Path) -> Iterator[WholeFarm]:
    whole = WholeFarm(short_folder / "faults")
    whole.start()
    yield whole
    assert whole.stop() == 0


def submit(farm: WholeFarm, count: int = JOBS) -> Batch:
    return farm.client.submit(prompt="a red apple", seed=1, steps=8, count=count)


def underway(batch: Batch) -> bool:
    return 2 <= batch.refresh().counts["succeeded"] < batch.total


def has_ended(batch: Batch) -> bool:
    try:
        return batch.refresh().ended
    except Unavailable:
        return False  # the API itself may be the victim


def check_the_books(farm: WholeFarm, batch: Batch) -> None:
    """Every job one outcome, one image row, one file with that content; nothing left over."""
    assert batch.refresh().counts["succeeded"] == batch.total, batch.counts
    with farm.database() as db:
        rows = db.all(
            "SELECT ord, path, sha256 FROM images WHERE batch_id = %(id)s", {"id": int(batch.id)}
        )
        wins = db.all(
            """SELECT ord, count(*) AS wins FROM attempts
               WHERE batch_id = %(id)s AND result = 'succeeded' GROUP BY ord""",
            {"id": int(batch.id)},
        )
        leftovers = db.one(
            "SELECT (SELECT count(*) FROM leases) + (SELECT count(*) FROM requeue) AS found"
        )
    assert sorted(row["ord"] for row in rows) == list(range(batch.total))
    assert all(row["wins"] == 1 for row in wins)
    assert len(wins) == batch.total
    assert leftovers == {"found": 0}
    for row in rows:
        data = (farm.home / "images" / row["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"]


def wait_for(batch: Batch) -> None:
    eventually(lambda: has_ended(batch), within=180, every=0.2)


@pytest.mark.parametrize("victim", ["worker", "dispatcher", "api", "valkey", "postgres"])
def test_kill_9_in_the_middle_of_a_batch(farm: WholeFarm, victim: str) -> None:
    batch = submit(farm)
    eventually(lambda: underway(batch))
    farm.kill(victim)
    wait_for(batch)
    check_the_books(farm, batch)


def test_everything_but_postgres_killed_at_once(farm: WholeFarm) -> None:
    batch = submit(farm)
    eventually(lambda: underway(batch))
    for victim in ("worker", "dispatcher", "api", "valkey"):
        farm.kill(victim)
    wait_for(batch)
    check_the_books(farm, batch)


def test_a_broker_that_forgets_everything(farm: WholeFarm) -> None:
    batch = submit(farm)
    client = redis.Redis.from_url(client_url(sockets.urls(farm.home)[1]))
    for wanted in (1, JOBS // 3, JOBS // 2):
        eventually(lambda wanted=wanted: batch.refresh().counts["succeeded"] >= wanted)  # type: ignore[misc]
        client.flushall()
    wait_for(batch)
    check_the_books(farm, batch)


def test_a_frozen_worker_comes_back_as_a_stranger(farm: WholeFarm) -> None:
    """Past its lease its jobs belong to others; what it still holds must not count."""
    batch = submit(farm)
    eventually(lambda: underway(batch))
    frozen = farm.find("worker")
    frozen.send_signal(signal.SIGSTOP)
    with farm.database() as db:
        eventually(lambda: not db.all("SELECT FROM sessions WHERE ended_at IS NULL"))
    frozen.send_signal(signal.SIGCONT)
    wait_for(batch)
    check_the_books(farm, batch)


def test_cancel_stops_what_runs_and_what_waits(farm: WholeFarm) -> None:
    batch = submit(farm, 200)
    eventually(lambda: batch.refresh().counts["running"] > 0)
    batch.cancel()
    wait_for(batch)
    assert batch.state == "cancelled"
    assert batch.counts["succeeded"] + batch.counts["cancelled"] == 200
    assert batch.counts["cancelled"] > 150
    again = submit(farm, 1)
    wait_for(again)
    check_the_books(farm, again)

"""The worst faults once more, with the real engine: every job ends with exactly one image."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.client import Batch
from farm.db.database import Database
from farm.embedded import sockets
from farm.errors import Unavailable
from farm.storage import ImageStore
from farm.supervisor import Process, Supervisor
from tests.conftest import eventually
from tests.ledger import Fault, check
from tests.wholefarm import WholeFarm


@pytest.fixture(scope="module")
def farm(short_folder: Path) -> Iterator[WholeFarm]:
    whole = WholeFarm(short_folder / "engine")
    whole.start()
    yield whole
    assert whole.stop() == 0


@pytest.fixture(scope="module")
def faults() -> list[Fault]:
    """All that was broken so far."""
    return []


def submit(farm: WholeFarm, count: int = 16) -> Batch:
    return farm.client.submit(prompt="a red apple", seed=1, steps=8, count=count)


def underway(batch: Batch) -> bool:
    return 2 <= batch.refresh().counts["succeeded"] < batch.total


def has_ended(batch: Batch) -> bool:
    try:
        return batch.refresh().ended
    except Unavailable:
        return False  # the API itself may be the victim


def finish(farm: WholeFarm, batch: Batch, faults: list[Fault]) -> None:
    eventually(lambda: has_ended(batch), within=180, every=0.2)
    with farm.database() as db:
        print(check(db, ImageStore(str(farm.home / "images")), faults))


@pytest.fixture
def hanging(farm: WholeFarm) -> Iterator[Path]:
    """A file that a second worker hangs at."""
    file = farm.home / "hang"
    database, broker = sockets.urls(farm.home)
    told = {
        **{name: value for name, value in farm.environment.items() if name[:5] == "FARM_"},
        "FARM_HOME": str(farm.home),
        "FARM_DATABASE_URL": database,
        "FARM_BROKER_URL": broker,
        "FARM_WORKER_NAME": "hanging",
        "FARM_HANG_SECONDS": "2",
        "FARM_DRAIN_SECONDS": "3",
        "HANG": str(file),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    argv = [sys.executable, "-m", "tests.hanging_worker"]
    supervisor = Supervisor(farm.home / "hanging")
    thread = threading.Thread(target=supervisor.run, daemon=True)
    try:
        supervisor.start(Process("hanging", argv, told, grace=20))
        thread.start()
        eventually(lambda: "hanging" in [one["name"] for one in farm.client.workers()], within=120)
        yield file
    finally:
        supervisor.request_stop()
        thread.join()
        supervisor.stop()


def test_a_step_that_hangs_ends_its_worker_and_others_make_its_images(
    farm: WholeFarm, faults: list[Fault], hanging: Path
) -> None:
    """The process lives on, and only its own watchdog can tell."""
    with Fault("a step that hangs") as fault:
        hanging.touch()
        batch = submit(farm, 40)
        eventually(lambda: not hanging.exists(), within=60)
        with farm.database() as db:
            eventually(lambda: lost(db, batch), within=60)
            tried = lost(db, batch)
    faults.append(fault)
    finish(farm, batch, faults)
    assert batch.counts["succeeded"] == batch.total
    assert {each["worker"] for each in tried} == {"hanging"}
    for each in tried:
        assert each["error"]["class"] == "hung"
        assert "denoise has not ended for" in each["error"]["detail"]
        shown = farm.client.job(f"{batch.id}-{each['ord']}").data["attempts"]
        assert [one["result"] for one in shown] == ["lost", "succeeded"]


def lost(db: Database, batch: Batch) -> list[dict[str, Any]]:
    """Attempts of a batch that were begun and never ended."""
    return db.all(
        "SELECT * FROM attempts WHERE batch_id = %(id)s AND result = 'lost'", {"id": int(batch.id)}
    )


@pytest.mark.parametrize("victims", [("worker",), ("worker", "dispatcher", "api", "valkey")])
def test_kill_9_in_the_middle_of_a_batch(
    farm: WholeFarm, faults: list[Fault], victims: tuple[str, ...]
) -> None:
    batch = submit(farm)
    eventually(lambda: underway(batch))
    with Fault("kill -9") as fault:
        for victim in victims:
            farm.kill(victim)
    faults.append(fault)
    finish(farm, batch, faults)
    assert batch.counts["succeeded"] == batch.total


def test_cancel_stops_what_runs_and_what_waits(farm: WholeFarm, faults: list[Fault]) -> None:
    batch = submit(farm, 200)
    eventually(lambda: batch.refresh().counts["running"] > 0)
    batch.cancel()
    finish(farm, batch, faults)
    assert batch.state == "cancelled"
    assert batch.counts["succeeded"] + batch.counts["cancelled"] == 200
    assert batch.counts["cancelled"] > 150
    again = submit(farm, 1)
    finish(farm, again, faults)
    assert again.counts["succeeded"] == 1

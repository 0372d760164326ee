"""The worst faults once more, with the real engine: every job ends with exactly one image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farm.client import Batch
from farm.errors import Unavailable
from farm.storage import ImageStore
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


def submit(farm: WholeFarm, count: int = 24) -> Batch:
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

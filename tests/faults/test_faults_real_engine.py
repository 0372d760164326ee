"""The worst faults once more, with the real engine: every job ends with exactly one image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.client import Batch
from farm.db.database import Database
from tests.conftest import eventually
from tests.crew import Crew
from tests.saboteur import Saboteur
from tests.wholefarm import WholeFarm

PATIENCE = 180.0


@pytest.fixture(scope="module")
def _saboteur(short_folder: Path) -> Iterator[Saboteur]:
    farm = WholeFarm(short_folder / "engine", workers="0")
    farm.start()
    # Longer than a step takes where everything else wants the processors as well.
    told = {"FARM_HANG_SECONDS": "4", "HANG": str(farm.home / "hang")}
    crew = Crew(farm, ["cpu0", "cpu1"], module="tests.hanging_worker", **told)
    try:
        crew.start()
        yield Saboteur(farm, crew)
    finally:
        crew.stop()
        assert farm.stop() == 0


@pytest.fixture
def saboteur(_saboteur: Saboteur) -> Saboteur:
    """Breaks a farm of two real workers: what one does not finish is the other's."""
    eventually(_saboteur.farm.answers)
    _saboteur.crew.wait_live()
    return _saboteur


def submit(saboteur: Saboteur) -> Batch:
    """Sixteen jobs, which end one after the other."""
    axes = {"steps": "3-10 (+1)"}
    return saboteur.farm.client.submit(prompt="a red apple", seed=1, count=2, axes=axes)


def lost(db: Database, batch: Batch) -> list[dict[str, Any]]:
    """Attempts of a batch that were begun and never ended."""
    return db.all(
        "SELECT * FROM attempts WHERE batch_id = %(id)s AND result = 'lost'", {"id": int(batch.id)}
    )


def test_a_step_that_hangs_ends_its_worker_and_the_other_makes_its_images(
    saboteur: Saboteur,
) -> None:
    """The process lives on, and only its own watchdog can tell."""
    farm, hang = saboteur.farm, saboteur.farm.home / "hang"
    with saboteur.breaking("a step that hangs"), farm.database() as db:
        hang.touch()
        batch = submit(saboteur)
        eventually(lambda: not hang.exists())
        eventually(lambda: lost(db, batch))
        tried = lost(db, batch)
    saboteur.finish(batch, within=PATIENCE)
    assert batch.counts["succeeded"] == batch.total == 16
    [hung] = {each["worker"] for each in tried}
    for each in tried:
        assert each["error"]["class"] == "hung"
        assert "denoise has not ended for" in each["error"]["detail"]
        first, second = farm.client.job(f"{batch.id}-{each['ord']}").data["attempts"]
        assert (first["result"], second["result"]) == ("lost", "succeeded")
        assert (first["worker"], second["worker"] == hung) == (hung, False)


AT_WORK = """
SELECT worker FROM sessions s JOIN leases l ON l.session_id = s.id
WHERE l.started_at IS NOT NULL
"""


def test_kill_9_in_the_middle_of_a_batch(saboteur: Saboteur) -> None:
    """Of a worker with images under way, and of all but Postgres that it talks to."""
    batch = submit(saboteur)
    eventually(lambda: batch.refresh().counts["succeeded"] > 0)
    with saboteur.farm.database() as db:
        at_work = db.all(AT_WORK)
        assert at_work
        saboteur.kill(at_work[0]["worker"], "dispatcher", "api", "valkey")
        saboteur.finish(batch, within=PATIENCE)
        assert lost(db, batch)
    assert batch.counts["succeeded"] == batch.total


def test_cancel_stops_what_runs_and_what_waits(saboteur: Saboteur) -> None:
    batch = saboteur.farm.client.submit(prompt="a red apple", seed=1, steps=8, count=200)
    eventually(lambda: batch.refresh().counts["running"] > 0)
    batch.cancel()
    saboteur.finish(batch, within=PATIENCE)
    assert batch.state == "cancelled"
    assert batch.counts["succeeded"] + batch.counts["cancelled"] == 200
    assert batch.counts["cancelled"] > 150
    again = saboteur.farm.client.submit(prompt="a red apple", count=1)
    saboteur.finish(again, within=PATIENCE)
    assert again.counts["succeeded"] == 1

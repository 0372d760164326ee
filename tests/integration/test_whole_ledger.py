"""Every second of a worker is accounted for, whatever it goes through: a real farm's ledger."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm.client import Batch
from farm.db.database import Database
from farm.worker.models.catalogue import builtin_folder
from tests.conftest import eventually
from tests.wholefarm import WholeFarm

_LIVES = """
SELECT s.id, s.state, u.seconds,
       extract(epoch FROM CASE s.state WHEN 'closed' THEN s.ended_at ELSE s.beat_at END
                          - s.started_at)::float AS life
FROM sessions s
CROSS JOIN LATERAL (SELECT sum(seconds) AS seconds FROM usage WHERE session_id = s.id) u
WHERE s.ended_at IS NOT NULL ORDER BY s.started_at
"""


@pytest.fixture
def farm(short_folder: Path) -> Iterator[WholeFarm]:
    models = short_folder / "ledger" / "models"
    models.mkdir(parents=True)
    for part in builtin_folder().glob("demo.*"):
        copy = shutil.copytree if part.is_dir() else shutil.copy
        copy(part, models / f"second{part.suffix}")
    whole = WholeFarm(short_folder / "ledger", FARM_LEASE_SECONDS="3")
    whole.start()
    yield whole
    assert whole.stop() == 0


def ended(batch: Batch) -> Batch:
    eventually(lambda: batch.refresh().ended, within=120, every=0.1)
    return batch


def lives(db: Database, state: str) -> list[dict[str, Any]]:
    return [row for row in db.all(_LIVES) if row["state"] == state]


def uses(farm: WholeFarm, batch: Batch) -> dict[str, float]:
    found = {line["key"]: line["seconds"] for line in farm.client.usage(by="batch")["lines"]}
    return found.get(batch.id, {})


def test_the_ledger_of_a_farm_adds_up_to_the_clock(farm: WholeFarm) -> None:
    submit = farm.client.submit
    good = ended(submit(prompt="a red apple", count=3, steps=12, checkpoint="demo"))
    other = ended(submit(prompt="a key", count=2, steps=4, checkpoint="second"))
    bad = ended(submit(prompt="a key <lora:nobody has it:1>", steps=4, checkpoint="demo"))
    unwanted = submit(prompt="a lion", count=8, steps=150, checkpoint="demo")
    eventually(lambda: unwanted.refresh().counts["running"] > 1)
    unwanted.cancel()
    ended(unwanted)
    assert not list(other.jobs("failed")), next(other.jobs("failed")).data["error"]["detail"]
    assert (good.counts["succeeded"], other.counts["succeeded"]) == (3, 2)
    assert (bad.counts["failed"], unwanted.counts["cancelled"] > 0) == (1, True)

    farm.kill("worker", signal.SIGTERM)
    with farm.database() as db:
        eventually(lambda: lives(db, "closed"))
        [closed] = lives(db, "closed")
        assert closed["seconds"] == pytest.approx(closed["life"], rel=0.01, abs=0.1)
        assert {"denoise", "decode", "encode", "load"} <= set(uses(farm, good))
        assert {"denoise", "load"} <= set(uses(farm, other))
        assert uses(farm, unwanted)["cancelled"] > 0
        assert set(uses(farm, unwanted)) <= {"cancelled", "denoise", "encode", "decode", "load"}

        # A worker that is gone takes its ledger with it; what it had in flight has failed.
        lost = submit(prompt="a lion", count=8, steps=150, checkpoint="demo")
        eventually(lambda: lost.refresh().counts["running"] > 1)
        eventually(
            lambda: db.all(
                "SELECT FROM sessions WHERE beat_at > started_at"
                " + interval '1.5 s' AND ended_at IS NULL"
            )
        )
        farm.kill("worker", signal.SIGSTOP)  # killed it would come back, which nobody waits for
        eventually(lambda: lives(db, "dead"))
        [dead] = lives(db, "dead")
        assert dead["seconds"] == pytest.approx(dead["life"], rel=0.01, abs=0.1)
        assert uses(farm, lost)["failed"] > 0
        lost.cancel()
        told = farm.run("usage", "--by", "user")
        assert "denoise" in told.stdout
        [judged, _] = farm.client.forecasts()
        assert judged["moment"] == "accepted"
        farm.kill("worker")

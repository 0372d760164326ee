"""What can go wrong around a worker: its disk, its clock, an upgrade, a restart of everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from farm.client import Batch
from tests.conftest import eventually
from tests.crew import Crew
from tests.disk import Disk
from tests.saboteur import Saboteur


@contextmanager
def told(file: Path, content: str = "") -> Iterator[None]:
    """While a file says so, something is wrong in the stand-in workers."""
    file.write_text(content)
    try:
        yield
    finally:
        file.unlink()


def refusals(saboteur: Saboteur) -> list[str]:
    told = [worker["stats"].get("refuses") for worker in saboteur.farm.client.workers()]
    return [each for each in told if each]


@pytest.fixture
def full(disk: Disk | None, crew: Crew) -> AbstractContextManager[None]:
    """The kernel says that the disk is full; where none may be mounted, the workers do."""
    return disk.full() if disk else told(crew.faults / "full")


def test_a_full_disk_wastes_nothing(saboteur: Saboteur, full: AbstractContextManager[None]) -> None:
    """What was finished waits in memory, nothing else is begun, and everybody is told why."""
    batch = saboteur.begin(60)
    wasted = saboteur.wasted()
    with saboteur.breaking("a full disk"), full:
        eventually(lambda: len(refusals(saboteur)) == 2)
        assert all("the disk is full" in each for each in refusals(saboteur))
        eventually(lambda: not batch.refresh().counts.get("assigned"))
        why = saboteur.farm.client.why(f"{batch.id}-59")
        assert "No worker can begin a job: cpu0:" in why["reason"]
        assert "the disk is full" in why["reason"]
        done = batch.refresh().counts["succeeded"]
    saboteur.finish(batch)
    assert done < 60
    assert saboteur.wasted() == wasted


SPOIL = """
CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN RAISE ''this page is broken''; END';
CREATE TRIGGER spoil BEFORE INSERT ON outcomes FOR EACH ROW WHEN (new.ord = 17)
    EXECUTE FUNCTION spoil();
"""


def test_an_attempt_whose_ending_cannot_be_written_is_made_again(saboteur: Saboteur) -> None:
    """Not even that it has failed: its worker lives, and knows nothing of it any more."""
    with saboteur.farm.database() as db, saboteur.breaking("a page that is broken"):
        with db.connection() as connection:
            connection.execute(SPOIL)
        batch = saboteur.farm.client.submit(prompt="a red apple", seed=1, count=20)
        eventually(lambda: batch.refresh().counts["succeeded"] == 19)
        with db.connection() as connection:
            connection.execute("DROP FUNCTION spoil CASCADE")
            # Nobody need wait for the minute that it takes to be sure.
            connection.execute("UPDATE leases SET started_at = now() - interval '1 hour'")
    saboteur.finish(batch)
    assert batch.counts["succeeded"] == 20


TRIED = """
SELECT result, worker, error ->> 'detail' AS detail,
       extract(epoch FROM assigned_at - lag(ended_at) OVER (ORDER BY attempt))::float AS pause
FROM attempts WHERE batch_id = %(batch)s AND ord = %(ord)s ORDER BY attempt
"""


def test_soft_failures_are_tried_again_twice(saboteur: Saboteur) -> None:
    """After a second and after two, each time by the other worker; the third is the last."""
    batch = saboteur.begin(80)  # it shows that neither worker fails all that it gets
    times = {"Prompt S/R": "1, 2, 3"}
    with saboteur.breaking("a first soft failure"), saboteur.breaking("a second one"):
        jobs = saboteur.farm.client.submit(prompt="fails 1", axes=times)
        saboteur.finish(jobs, batch)
    assert (jobs.counts["succeeded"], jobs.counts["failed"]) == (2, 1)
    assert batch.counts["succeeded"] == 80
    with saboteur.farm.database() as db:
        for failures in (1, 2, 3):
            tried = db.all(TRIED, {"batch": int(jobs.id), "ord": failures - 1})
            results = ["retry", "retry", "failed"][:failures] + ["succeeded"] * (failures < 3)
            assert [row["result"] for row in tried] == results
            why = {row["detail"] for row in tried[:failures]}
            assert why == {"RuntimeError: something is loose"}
            assert all(one["worker"] != other["worker"] for one, other in pairwise(tried))
            pauses = [row["pause"] for row in tried[1:]]
            assert all(pause >= least for pause, least in zip(pauses, (1, 2), strict=False))


def test_clocks_that_jump_harm_nobody(saboteur: Saboteur, crew: Crew) -> None:
    """An hour ahead, and from there two hours back."""
    batch = saboteur.begin(400)
    wasted = saboteur.wasted()
    for seconds in (3600, -3600):
        with told(crew.faults / "clock", str(seconds)):
            done = batch.refresh().counts["succeeded"]
            eventually(lambda done=done: batch.refresh().counts["succeeded"] > done + 8)  # type: ignore[misc]
    batch.cancel()  # that was enough of them
    saboteur.finish(batch)
    assert saboteur.wasted() == wasted


def test_a_rolling_restart_under_load_loses_nothing(saboteur: Saboteur, crew: Crew) -> None:
    batches: list[Batch] = []
    for victim in ("cpu0", "standby", "dispatcher", "api", "cpu1", "valkey", "postgres"):
        batches.append(saboteur.begin(20))
        saboteur.stop(victim)
        eventually(saboteur.farm.answers)
        crew.wait_live()
    saboteur.finish(*batches)
    with saboteur.farm.database() as db:
        ours = {"first": int(batches[0].id)}
        lost = db.all(
            "SELECT * FROM attempts WHERE batch_id >= %(first)s AND result = 'lost'", ours
        )
    assert lost == []

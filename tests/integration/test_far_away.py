"""A card is not idle beside a batch of which only the end is for it, however far away that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from farm.broker.queue import Publisher
from farm.db import assets, backlog, batches, inputs, leases, reasons, sessions
from farm.db import users as people
from farm.db.assets import Asset
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Ending, Lease
from farm.db.sessions import NewSession
from farm.dispatch import dispatcher as dispatching
from farm.dispatch import heads
from farm.dispatch.dispatcher import Dispatcher
from farm.dispatch.sorts import Sorts
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.moves import Move
from tests.records import IMAGE, TEMPLATE

FAR = 4096
HELD = "SELECT batch_id, ord, attempt, session_id FROM leases"


@pytest.fixture
def leader(db: Database, broker_url: str) -> Iterator[Dispatcher]:
    publisher = Publisher(broker_url)
    yield Dispatcher(db, publisher)
    publisher.close()


def worker(db: Database, checkpoint: str, *, places: int = 4) -> str:
    """A worker on a host of its own, which has one checkpoint; its session."""
    name = f"only-{checkpoint}"
    assets.register(db, name, [Asset(checkpoint, "sd15", 1, f"/{checkpoint}", {}, None)])
    sessions.open(db, NewSession(name, name, name, 1, {}, "cpu", places), lease=600)
    return name


def listed(checkpoints: str, **fields: Any) -> list[JobSpec]:
    made = {name: JobSpec(**{**TEMPLATE, "checkpoint": name, **fields}) for name in {*checkpoints}}
    return [made[name] for name in checkpoints]


def submit(db: Database, jobs: Sequence[JobSpec], *, user: int | None = None) -> int:
    owner = people.local(db).id if user is None else user
    return batches.accept(db, NewBatch(owner, jobs=jobs)).id


def placed(db: Database, session: str) -> list[int]:
    rows = db.all(
        "SELECT ord FROM leases WHERE session_id = %(id)s ORDER BY batch_id, ord", {"id": session}
    )
    return [row["ord"] for row in rows]


def work_off(leader: Dispatcher) -> None:
    while leader.cycle():
        pass


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        ("a" * FAR + "b" * 9, [FAR, FAR + 1, FAR + 2, FAR + 3]),
        ("a" * FAR + "cb" * 9, [FAR + 1, FAR + 3, FAR + 5, FAR + 7]),
        ("ac" * FAR + "b", [2 * FAR]),
        ("ab" * FAR, [1, 3, 5, 7]),
        ("aaaaaaab" * 20, [7, 15, 23, 31]),
        ("a" * FAR, []),
    ],
)
def test_the_second_checkpoint_of_a_list_is_found(
    db: Database, leader: Dispatcher, checkpoints: str, expected: list[int]
) -> None:
    only = worker(db, "b")
    assert submit(db, listed(checkpoints))
    work_off(leader)
    assert placed(db, only) == expected


def test_nobody_waits_for_who_has_the_first(db: Database, leader: Dispatcher) -> None:
    """Both go on side by side, and each job is given out once."""
    each = [worker(db, name, places=60) for name in "ab"]
    submit(db, listed("a" * 100 + "b" * 30 + "a" * 10 + "b" * 20))
    work_off(leader)
    work_off(leader)
    assert placed(db, each[0]) == [*range(60)]
    assert placed(db, each[1]) == [*range(100, 130), *range(140, 160)]


def test_a_size_far_away_in_a_list_and_among_axes(db: Database, leader: Dispatcher) -> None:
    """Where one card takes small images only, and the first are large."""
    mib = 2**20
    told = {
        "memory": 164 * mib,
        "share": 1.0,
        "bytes_a_weight": 2,
        "families": {
            "sd15": {"weights": 100 * mib, "peaks": [[64 * 64, 4 * mib], [1024**2, 1024 * mib]]}
        },
    }
    file = Asset(TEMPLATE["checkpoint"], "sd15", 100 * mib, "/m", {}, None, dtype="float16")
    assets.register(db, "host", [file])
    new = NewSession("small", "small", "host", 1, {}, "cpu", 3, fits=told)
    sessions.open(db, new, lease=600)
    large, small = (JobSpec(**{**TEMPLATE, "width": width, "height": 64}) for width in (2048, 64))
    submit(db, [large] * 700 + [small])
    sizes = (*range(2048, 1024, -64), 64)
    axes = (("steps", (1, 2)), ("width", sizes))
    spec = BatchSpec(template={**TEMPLATE, "height": 1024}, axes=axes, count=2)
    batches.accept(db, NewBatch(people.local(db).id, spec=spec))
    work_off(leader)
    assert placed(db, "small") == [700, 2 * len(sizes) - 2, 2 * len(sizes) - 1]


def test_of_more_batches_than_have_several_heads_none_is_forgotten(
    db: Database, leader: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MORE", 3)
    only = worker(db, "b", places=40)
    for _ in range(12):
        submit(db, listed("ab"))
    work_off(leader)
    assert placed(db, only) == [1] * 12


def test_what_others_went_ahead_of_is_set_aside_and_made_in_time(
    db: Database, leader: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the row of a batch would grow with all that a free card takes here and there."""
    monkeypatch.setattr(heads, "FRAYED", 6)
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    worker(db, "b")
    batch = submit(db, listed("ab" * 30))

    def make_all() -> int:
        leader.cycle()
        held = [Lease(**row) for row in db.all(HELD)]
        for lease in held:
            leases.start(db, lease)
            ending = Ending(*lease[:3], Move.SUCCEED, image=IMAGE)
            assert leases.end(db, lease.session_id, lease.session_id, [ending])
        [row] = db.all("SELECT ahead::text AS ahead FROM batches")
        assert row["ahead"].count(",") < 6 + 4 + 4, "what a cycle adds is more at most"
        return len(held)

    while make_all():
        pass
    only = {row["ord"] for row in db.all("SELECT ord FROM outcomes")}
    assert only == {*range(1, 60, 2)}
    found = batches.fetch(db, batch)
    assert found
    assert found.counts["pending"] == 30
    worker(db, "a")
    while make_all():
        pass
    done = db.all("SELECT ord, attempt FROM outcomes ORDER BY ord")
    assert [(row["ord"], row["attempt"]) for row in done] == [(ord, 1) for ord in range(60)]
    backlog.finish(db)
    found = batches.fetch(db, batch)
    assert found
    assert found.state == "done"


def test_a_job_to_try_again_is_found_behind_others_that_nobody_can_make(
    db: Database, leader: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "_RETRIES", backlog._RETRIES.replace("%(jobs)s", "6"))
    only = worker(db, "b")
    batch = submit(db, listed("a" * 20 + "bb" + "a" * 5))
    assert leases.set_aside(db, batch, spans=1, jobs=27) == 27
    told = reasons.facts(db, batch, 0, "a")
    assert told
    assert told.retry_reason is None, "it was never tried"
    for _ in range(12):
        leader.cycle()
    assert placed(db, only) == [20, 21]


def test_who_may_have_no_more_in_flight_hides_nothing_of_others(
    db: Database, leader: Dispatcher
) -> None:
    only = worker(db, "b", places=3)
    key = people.create_key(db, "other")
    other = people.for_key(db, key)
    assert other
    people.set_share(db, "other", cap=1)
    submit(db, listed("bbbb"), user=other.id)
    submit(db, listed("a" * FAR + "bb"))
    work_off(leader)
    work_off(leader)
    assert placed(db, only) == [0, FAR, FAR + 1]


def test_marks_are_few_and_tell_of_every_job(db: Database) -> None:
    lines = listed("a" * 3000 + "b" * 10 + "a" * 10)
    batch = submit(db, lines)
    marks = db.all("SELECT ord FROM inputs WHERE needs IS NOT NULL ORDER BY ord")
    assert [row["ord"] for row in marks] == [0, 1024, 2048, 3000, 3010]
    by_name = {job.checkpoint: number for number, job in inputs.sorts(db, batch, limit=9)}
    assert {*by_name} == {"a", "b"}
    asked = (0, 5, 1023, 1024, 2999, 3000, 3009, 3010, 3019)
    told = {
        name: [inputs.following(db, batch, number, ord) for ord in asked]
        for name, number in by_name.items()
    }
    assert told["a"] == [0, 5, 1023, 1024, 2999, 3010, 3010, 3010, 3019]
    assert told["b"] == [3000, 3000, 3000, 3000, 3000, 3000, 3009, None, None]


def test_more_sorts_than_are_read_at_once(db: Database) -> None:
    """And what is only called otherwise is no other sort."""
    jobs = [JobSpec(**{**TEMPLATE, "width": 64 + 8 * n}) for n in range(7)]
    named = [job.model_copy(update={"prompt": "another", "seed": 9}) for job in jobs]
    batch = submit(db, [*jobs, *named])
    first = inputs.sorts(db, batch, limit=4)
    rest = inputs.sorts(db, batch, after=first[-1][0], limit=4)
    assert (len(first), len(rest)) == (4, 3)
    assert sorted(job.width for _, job in [*first, *rest]) == [job.width for job in jobs]
    numbers = [sort.number for sort in Sorts(db).page(batch, None)]
    assert numbers == sorted(number for number, _ in [*first, *rest])

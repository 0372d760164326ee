"""What batches ask of workers, as the dispatcher heeds it: tags, and room on the card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from farm.broker.queue import Publisher
from farm.db import assets, batches, jobs, leases, sessions, users
from farm.db.assets import Asset
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Ending
from farm.db.sessions import NewSession
from farm.dispatch.dispatcher import Dispatcher
from farm.dispatch.needs import Needs
from farm.dispatch.reach import reach
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.moves import Move
from tests.records import TEMPLATE

MIB = 2**20


@pytest.fixture
def dispatcher(db: Database, broker_url: str) -> Iterator[Dispatcher]:
    publisher = Publisher(broker_url)
    yield Dispatcher(db, publisher)
    publisher.close()


def submit(db: Database, *, tags: tuple[str, ...] = (), **fields: Any) -> int:
    spec = BatchSpec(template={**TEMPLATE, **fields}, count=4)
    return batches.accept(db, NewBatch(users.local(db).id, spec=spec, tags=tags)).id


def worker(
    db: Database,
    name: str,
    *,
    tags: tuple[str, ...] = (),
    room: int | None = None,
    capacity: int = 4,
) -> None:
    """A worker; ``room`` MiB beside 100 of weights, where an image takes 1 KiB a pixel."""
    told = {
        "memory": (100 + (room or 0)) * MIB,
        "share": 1.0,
        "bytes_a_weight": 2,
        "families": {
            "sd15": {"weights": 100 * MIB, "peaks": [[64 * 64, 4 * MIB], [1024 * 1024, 1024 * MIB]]}
        },
    }
    fits = told if room is not None else {}
    session = NewSession(name, name, "host", 1, {}, "cpu", capacity, fits=fits, tags=list(tags))
    sessions.open(db, session, lease=60)


def placed(db: Database) -> dict[str, int]:
    rows = db.all("SELECT session_id, count(*) AS jobs FROM leases GROUP BY session_id")
    return {row["session_id"]: row["jobs"] for row in rows}


def test_a_batch_gets_workers_that_have_all_its_tags(db: Database, dispatcher: Dispatcher) -> None:
    submit(db, tags=("a100", "red"))
    worker(db, "gpu0", tags=("a100",))
    assert dispatcher.cycle() == 0
    worker(db, "gpu1", tags=("a100", "red", "spare"))
    dispatcher.cycle()
    assert placed(db) == {"gpu1": 4}


def test_a_worker_can_be_tagged_while_it_lives(db: Database, dispatcher: Dispatcher) -> None:
    submit(db, tags=("red",))
    worker(db, "gpu0", tags=("blue",))
    assert dispatcher.cycle() == 0
    assert sessions.tag(db, "gpu0", add=["red", "red"], remove=["blue"]) == 1
    assert [session.tags for session in sessions.live(db)] == [["red"]]
    assert dispatcher.cycle() == 4
    assert sessions.tag(db, "gpu9", add=["red"], remove=[]) == 0


def test_a_job_goes_where_it_fits(db: Database, dispatcher: Dispatcher) -> None:
    name = TEMPLATE["checkpoint"]
    file = Asset(name, "sd15", 100 * MIB, "/m", {}, None, dtype="float16")
    assets.register(db, "host", [file])
    worker(db, "small", room=64)
    submit(db, width=512, height=512)
    assert dispatcher.cycle() == 0
    worker(db, "large", room=512)
    dispatcher.cycle()
    assert placed(db) == {"large": 4}


def test_a_small_card_takes_what_fits(db: Database, dispatcher: Dispatcher) -> None:
    file = Asset(TEMPLATE["checkpoint"], "sd15", 100 * MIB, "/m", {}, None, dtype="float16")
    assets.register(db, "host", [file])
    worker(db, "small", room=64)
    submit(db, width=128, height=128)
    assert dispatcher.cycle() == 4


def test_of_an_axis_of_sizes_each_card_takes_what_fits(
    db: Database, dispatcher: Dispatcher
) -> None:
    """And a card that all of them fit sees the whole of the batch, however the sizes alternate."""
    name = TEMPLATE["checkpoint"]
    file = Asset(name, "sd15", 100 * MIB, "/m", {}, None, dtype="float16")
    assets.register(db, "host", [file])
    worker(db, "small", room=64)
    template = {**TEMPLATE, "width": 64, "height": 64}
    axes = (("steps", tuple(range(1, 11))), ("width", (64, 2048)), ("height", (64, 2048)))
    batches.accept(db, NewBatch(users.local(db).id, spec=BatchSpec(template=template, axes=axes)))
    while dispatcher.cycle():
        pass
    assert ords(db) == {"small": [0, 4, 8, 12]}, "others are behind many that it cannot make"
    worker(db, "large", room=8192, capacity=76)
    sessions.beat(db, "large", lease=60, resident=[name], stats={})
    while dispatcher.cycle():
        pass
    found = ords(db)
    assert all(ord % 4 == 0 for ord in found["small"])
    assert sorted(found["small"] + found["large"]) == [*range(40)]


@pytest.mark.parametrize("listed", [False, True])
def test_a_job_is_tried_again_where_it_fits(
    db: Database, dispatcher: Dispatcher, listed: bool
) -> None:
    """Though the next ones are too large for that card."""
    name = TEMPLATE["checkpoint"]
    file = Asset(name, "sd15", 100 * MIB, "/m", {}, None, dtype="float16")
    assets.register(db, "host", [file])
    worker(db, "small", room=64)
    widths = (64, 2048)
    spec = BatchSpec(template=TEMPLATE, axes=(("width", widths),), count=2)
    lines = [JobSpec(**{**TEMPLATE, "width": width}) for width in (*widths, *widths)]
    new = {"jobs": lines} if listed else {"spec": spec}
    batch = batches.accept(db, NewBatch(users.local(db).id, **new)).id  # type: ignore[arg-type]
    small = [0, 2] if listed else [0, 1]
    for _ in range(2):
        dispatcher.cycle()
        assert ords(db) == {"small": small}
        for row in db.all("SELECT ord, attempt FROM leases"):
            again = Ending(batch, row["ord"], row["attempt"], Move.RELEASE)
            assert leases.end(db, "small", "small", [again])


def ords(db: Database) -> dict[str, list[int]]:
    rows = db.all("SELECT session_id, ord FROM leases ORDER BY ord")
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(row["session_id"], []).append(row["ord"])
    return found


def test_who_could_make_a_job(db: Database) -> None:
    name = TEMPLATE["checkpoint"]
    file = Asset(name, "sd15", 100 * MIB, "/m", {}, None, dtype="float16")
    assets.register(db, "host", [file])
    worker(db, "small", tags=("red",), room=64)
    worker(db, "large", tags=("red",), room=512)
    worker(db, "other", tags=("blue",), room=512)
    job = JobSpec.model_validate({**TEMPLATE, "width": 512, "height": 512})
    found = reach(db, job, ["red"])
    assert found.having == ("large", "other", "small")
    assert (found.tagged, found.fitting, found.free) == (("large", "small"), ("large",), 4)
    too_large = job.model_copy(update={"width": 2048, "height": 2048})
    found = reach(db, too_large, ["red"])
    assert found.fitting == ()
    assert found.nearest
    assert found.nearest[0] == found.nearest[1] < 2048
    assert found.peak
    assert found.room
    assert found.peak > found.room
    assert reach(db, job, ["red", "blue"]).tagged == ()
    assert reach(db, job, ["red", "green"]).tags == {"red"}


def test_what_retries_here_and_there_need_is_read_once(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = [JobSpec(**TEMPLATE)] * 200
    batch = batches.accept(db, NewBatch(users.local(db).id, jobs=listed)).id
    needs, read, find = Needs(db), [], jobs.checkpoint_run

    def noting(db: Database, batch_id: int, ord: int) -> tuple[dict[int, JobSpec], int]:
        read.append(ord)
        return find(db, batch_id, ord)

    monkeypatch.setattr(jobs, "checkpoint_run", noting)
    for ord in (0, 150, 70, 0, 150, 70):
        assert needs.of(batch, ord).until > ord
    assert sorted(read) == [0, 70, 150]


def test_listed_jobs_are_not_taken_for_the_first_of_them(
    db: Database, dispatcher: Dispatcher
) -> None:
    """What is larger or needs more would fail for good where the first one is at home."""
    name = TEMPLATE["checkpoint"]
    checkpoint = Asset(name, "sd15", 100 * MIB, "/m", {}, None, dtype="float16")
    four = Asset("four", None, MIB, "/four.pth", {}, None, "upscaler")
    assets.register(db, "host", [checkpoint])
    assets.register(db, "other", [checkpoint, four])
    small = {**TEMPLATE, "seed": 1, "width": 64, "height": 64}
    asked = {"hires_scale": 2, "hires_upscaler": "four"}
    fields = [{}, {"width": 1024, "height": 512}, {}, asked, {**asked, "hires_scale": 1}]
    listed = [JobSpec(**{**small, **each}) for each in fields]
    batch = batches.accept(db, NewBatch(users.local(db).id, jobs=listed)).id
    needs = Needs(db)
    found = [needs.of(batch, ord) for ord in range(5)]
    assert [each.until for each in found] == [3, 3, 3, 5, 5]
    assert found[0].largest == {name: 1024 * 512}
    assert [each.upscalers for each in found] == [set(), set(), set(), {"four"}, {"four"}]
    worker(db, "small", room=64)
    assert dispatcher.cycle() == 3
    worker(db, "large", room=1024)
    sessions.beat(db, "large", lease=60, resident=[name], stats={})
    while dispatcher.cycle():
        pass
    assert ords(db) == {"small": [0, 2, 4], "large": [1]}


@pytest.mark.parametrize(
    ("second", "room", "has", "fits"),
    [("other", 300, False, False), ("big", 200, True, False), ("big", 300, True, True)],
)
def test_both_passes_must_fit_and_both_checkpoints_be_there(
    db: Database, dispatcher: Dispatcher, *, second: str, room: int, has: bool, fits: bool
) -> None:
    fields = {"width": 256, "height": 256, "hires_scale": 2, "hires_checkpoint": second}
    name = TEMPLATE["checkpoint"]
    first = Asset(name, "sd15", 100 * MIB, "/m", {}, None, dtype="float16")
    assets.register(db, "host", [first, replace(first, name="big", path="/b")])
    batch = submit(db, **fields)
    worker(db, "gpu0", room=room)
    job = BatchSpec({**TEMPLATE, **fields}).job(0)
    assert Needs(db).of(batch, 0).largest == job.largest == {name: 256 * 256, second: 512 * 512}
    found = reach(db, job, ())
    assert (found.having == ("gpu0",), found.fitting == ("gpu0",)) == (has, fits)
    assert dispatcher.cycle() == (4 if fits else 0)


def test_a_job_goes_where_the_model_is_that_enlarges_it(
    db: Database, dispatcher: Dispatcher
) -> None:
    found = Asset("four", None, MIB, "/four.pth", {}, None, "upscaler")
    checkpoint = Asset(TEMPLATE["checkpoint"], "sd15", 100 * MIB, "/c", {}, None)
    assets.register(db, "host", [checkpoint])
    assets.register(db, "other", [checkpoint, found])
    asked = {"hires_scale": 2, "hires_upscaler": "four"}
    job = JobSpec(**{**TEMPLATE, "seed": 1, **asked})
    batch = submit(db, **asked)
    worker(db, "gpu0")
    assert reach(db, job, ()).having == ()
    assert reach(db, job, ()).checkpoints == (TEMPLATE["checkpoint"], "four")
    assert dispatcher.cycle() == 0
    sessions.open(db, NewSession("gpu1", "gpu1", "other", 1, {}, "cpu", 4), lease=60)
    assert reach(db, job, ()).having == ("gpu1",)
    assert dispatcher.cycle() == 4
    assert placed(db) == {"gpu1": 4}
    assert Needs(db).of(batch, 0).upscalers == {"four"}


def test_upscalers_on_an_axis_are_found_on_different_hosts(
    db: Database, dispatcher: Dispatcher
) -> None:
    checkpoint = Asset(TEMPLATE["checkpoint"], "sd15", 100 * MIB, "/c", {}, None)
    axes = (("hires_upscaler", ("four", "eight")),)
    spec = BatchSpec(template={**TEMPLATE, "seed": 1, "hires_scale": 2}, axes=axes, count=2)
    batches.accept(db, NewBatch(users.local(db).id, spec=spec))
    for host, name in (("one", "four"), ("two", "eight")):
        model = Asset(name, None, MIB, f"/{name}.pth", {}, None, "upscaler")
        assets.register(db, host, [checkpoint, model])
        sessions.open(db, NewSession(host, host, host, 1, {}, "cpu", 4), lease=60)
    while dispatcher.cycle():
        pass
    assert placed(db) == {"one": 2, "two": 2}

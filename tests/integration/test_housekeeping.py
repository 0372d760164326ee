"""Old rows, files that nothing names, queues of the dead: what goes, and what never does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from farm.api.deps import Services
from farm.broker.progress import client_url
from farm.broker.queue import Publisher, queue_name
from farm.cli.checks import examine
from farm.cli.main import app
from farm.db import backlog, leases, loading, retention, sessions, stores, users
from farm.db.database import Database
from farm.db.leases import Claim
from farm.db.sessions import NewSession
from farm.dispatch import housekeeping
from farm.dispatch.housekeeping import Housekeeper, Keep
from farm.dispatch.store import opened
from farm.errors import Unavailable
from farm.settings import Settings
from farm.storage import ImageStore, batch_folder, image_path
from tests.conftest import eventually
from tests.standin import StandIn


@pytest.fixture
def publisher(broker_url: str) -> Iterator[Publisher]:
    made = Publisher(broker_url)
    yield made
    made.close()


def keeper(services: Services, publisher: Publisher, **keep: Any) -> Housekeeper:
    return Housekeeper(services.images, publisher, Keep(**keep))


def tidy(found: Housekeeper, db: Database) -> int:
    """All there is to do; in how many slices."""
    slices = 1
    while found.slice(db):
        slices += 1
        assert slices < 200
    return slices


def made(api: TestClient, worker: StandIn, count: int = 3) -> int:
    batch = int(api.post("/v1/batches", json={"prompt": "a lion", "count": count}).json()["id"])
    worker.render(batch, failing=(1,))
    backlog.finish(worker.db)
    return batch


def age(db: Database, batch: int, days: float) -> None:
    """The batch was made and ended so long ago."""
    db.all(
        """UPDATE batches SET created_at = now() - make_interval(days => %(days)s, hours => 1),
                              ended_at = now() - make_interval(days => %(days)s)
           WHERE id = %(id)s RETURNING id""",
        {"id": batch, "days": days},
    )


def files(services: Services) -> set[str]:
    return set(services.images.paths())


def rows(db: Database, batch: int) -> dict[str, int]:
    tables = ("batches", "images", "outcomes", "attempts", "inputs", "batch_progress")
    found = {}
    for table in tables:
        column = "id" if table == "batches" else "batch_id"
        row = db.one(f"SELECT count(*) AS n FROM {table} WHERE {column} = {batch}")
        assert row
        found[table] = row["n"]
    return found


def test_without_a_wish_images_stay_and_only_attempts_go(
    api: TestClient, services: Services, worker: StandIn, publisher: Publisher
) -> None:
    old, young = made(api, worker), made(api, worker)
    age(worker.db, old, 91)
    age(worker.db, young, 89)
    before = files(services)
    tidy(keeper(services, publisher), worker.db)
    assert files(services) == before
    assert rows(worker.db, old) == {**rows(worker.db, young), "attempts": 0}
    assert api.get(f"/v1/jobs/{old}-0").json()["image"]
    assert api.get(f"/v1/images/{old}-0").status_code == 200


def test_files_of_fenced_attempts_go_and_no_others(
    api: TestClient, services: Services, worker: StandIn, publisher: Publisher
) -> None:
    batch = made(api, worker)
    kept = files(services)
    orphans = [
        image_path(batch, 0, 7),
        image_path(batch, 0, 7, ".thumb.webp"),
        image_path(batch, 9, 1, ".jpg"),
    ]
    foreign = [f"{batch_folder(batch)}/readme.txt", image_path(batch + 1, 0, 1), "traces/1.json"]
    for path in orphans + foreign:
        services.images.put(path, b"x")
    tidy(keeper(services, publisher), worker.db)
    assert files(services) == kept | set(orphans) | set(foreign), "it has only just ended"
    age(worker.db, batch, 2)
    tidy(keeper(services, publisher), worker.db)
    assert files(services) == kept | set(foreign)
    services.images.put(orphans[0], b"x")
    tidy(keeper(services, publisher), worker.db)
    assert orphans[0] in files(services), "each batch is looked through once"


def test_a_file_older_than_its_batch_is_another_farms(
    api: TestClient, services: Services, worker: StandIn, publisher: Publisher, tmp_path: Path
) -> None:
    batch = made(api, worker)
    stranger = image_path(batch, 5, 1)
    services.images.put(stranger, b"x")
    os.utime(tmp_path / "images" / stranger, (1, 1))
    age(worker.db, batch, 2)
    tidy(keeper(services, publisher), worker.db)
    assert stranger in files(services)


def test_what_may_still_become_an_image_stays(
    api: TestClient, services: Services, worker: StandIn, publisher: Publisher
) -> None:
    batch = made(api, worker, 2)
    api.post(f"/v1/jobs/{batch}-1:retry")
    [lease] = leases.claim(worker.db, [Claim(batch, worker.session, ords=[1])])
    path = image_path(batch, 1, lease.attempt)
    services.images.put(path, b"x")
    age(worker.db, batch, 2)  # as if somebody's clock had gone wrong
    tidy(keeper(services, publisher), worker.db)
    assert path in files(services)


def test_old_batches_go_with_all_they_made_in_slices(
    api: TestClient,
    services: Services,
    worker: StandIn,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "ROWS", 2)
    monkeypatch.setattr(housekeeping, "FILES", 3)
    old, kept, young = (made(api, worker, 6) for _ in range(3))
    listed = int(api.post("/v1/batches", json={"jobs": [{}] * 5}).json()["id"])
    worker.render(listed)
    backlog.finish(worker.db)
    services.images.put(image_path(old, 3, 9), b"an orphan")
    for batch, days in ((old, 31), (kept, 31), (listed, 31), (young, 29)):
        age(worker.db, batch, days)
    assert api.patch(f"/v1/batches/{kept}", json={"keep": True}).json()["keep"]
    stay = {path for path in files(services) if f"{kept:06d}/" in path or f"{young:06d}/" in path}

    found = keeper(services, publisher, batches=30)
    assert found.slice(worker.db)
    assert api.get(f"/v1/batches/{old}").status_code == 404, "gone for everybody at once"
    assert rows(worker.db, old)["batches"] == 1
    # Another leader goes on where this one stopped.
    assert tidy(keeper(services, publisher, batches=30), worker.db) > 5
    for batch in (old, listed):
        assert set(rows(worker.db, batch).values()) == {0}
    assert files(services) == stay
    assert not any((Path(services.images._root) / batch_folder(old)).glob("*"))
    assert rows(worker.db, kept)["images"] == 5
    assert [batch["id"] for batch in api.get("/v1/batches").json()["batches"]] == [
        str(young),
        str(kept),
    ]


def test_what_runs_or_is_tried_again_is_never_old(
    api: TestClient, services: Services, worker: StandIn, publisher: Publisher
) -> None:
    open_, repeated = made(api, worker), made(api, worker)
    api.post("/v1/batches", json={"prompt": "a lion", "count": 9})
    age(worker.db, repeated, 400)
    api.post(f"/v1/batches/{repeated}:retry")
    tidy(keeper(services, publisher, batches=1), worker.db)
    assert len(api.get("/v1/batches").json()["batches"]) == 3
    assert rows(worker.db, open_)["images"] == 2


def test_pruning_over_http_says_first_what_would_go(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    old, young = made(api, worker), made(api, worker)
    age(worker.db, old, 91)
    size = sum(services.images.size(p) for p in files(services) if p.endswith(f"{old:06d}/0-1.png"))
    asked = {"older_than_days": 90, "dry_run": True}
    told = api.post("/v1/prune", json=asked).json()
    assert (told["batches"], told["jobs"], told["images"], told["dry_run"]) == (1, 3, 2, True)
    assert told["bytes"] > size
    assert api.get(f"/v1/batches/{old}").status_code == 200
    assert api.post("/v1/prune", json={"older_than_days": 90}).json()["batches"] == 1
    assert api.get(f"/v1/batches/{old}").status_code == 404
    assert api.get(f"/v1/jobs/{old}-0").status_code == 404
    assert api.get(f"/v1/images/{old}-0").status_code == 404
    assert api.get(f"/v1/images/{young}-0").status_code == 200
    assert api.get(f"/v1/batches/{young}").status_code == 200
    assert api.post("/v1/prune", json={"older_than_days": 90}).json()["batches"] == 0


@pytest.mark.parametrize("days", [0, -1, 10**9, "soon", None])
def test_what_is_no_age(api: TestClient, days: Any) -> None:
    answer = api.post("/v1/prune", json={"older_than_days": days})
    assert (answer.status_code, answer.json()["field"]) == (422, "older_than_days")


def test_a_pruned_batchs_key_is_free_again(api: TestClient, worker: StandIn) -> None:
    headers = {"Idempotency-Key": "k"}
    first = api.post("/v1/batches", json={"prompt": "a lion"}, headers=headers).json()["id"]
    worker.render(int(first))
    backlog.finish(worker.db)
    age(worker.db, int(first), 91)
    api.post("/v1/prune", json={"older_than_days": 90})
    again = api.post("/v1/batches", json={"prompt": "a lion"}, headers=headers)
    assert (again.status_code, again.json()["id"] != first) == (202, True)


def test_uploads_that_died_are_forgotten(
    services: Services, worker: StandIn, publisher: Publisher
) -> None:
    owner = users.local(services.db).id
    dead, alive = loading.begin(services.db, owner), loading.begin(services.db, owner)
    services.db.all(
        "UPDATE batches SET loading_until = now() WHERE id = %(id)s RETURNING id", {"id": dead}
    )
    tidy(keeper(services, publisher), services.db)
    left = services.db.all("SELECT id, state FROM batches")
    assert [tuple(row.values()) for row in left] == [(alive, "loading")]


def test_dead_sessions_leave_nothing_in_broker_or_database(
    services: Services, worker: StandIn, publisher: Publisher, broker_url: str
) -> None:
    broker = redis.Redis.from_url(client_url(broker_url))
    broker.flushall()
    db = services.db
    for name in ("gone", "left"):
        sessions.open(db, NewSession(name, name, "here", 1, {}, "cpu", 8), lease=600)
        publisher.publish([(1, 0, 1, name)])
    publisher.publish([(1, 0, 1, worker.session), (1, 0, 1, "nobody")])
    for name in ("gone", "left"):
        sessions.close(db, name)
    db.all(
        "UPDATE sessions SET ended_at = now() - interval '31 days' WHERE id = 'gone' RETURNING 1"
    )
    keeper(services, publisher).slice(db)
    kept = {row["id"] for row in db.all("SELECT id FROM sessions")}
    assert kept == {"left", worker.session}
    queues = {key.decode() for key in broker.scan_iter(match="*w.*")}
    assert {name[name.index("w.") :] for name in queues} == {queue_name(worker.session)}
    broker.close()


def test_it_works_beside_the_leader_and_survives_its_faults(
    services: Services, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "PAUSE", 0.01)
    monkeypatch.setattr(housekeeping, "IDLE", 0.01)
    found, calls = keeper(services, publisher), [0]

    def slice(_: Database) -> bool:
        calls[0] += 1
        if calls[0] < 3:
            raise RuntimeError("the disk is full")
        return False

    monkeypatch.setattr(found, "slice", slice)
    with found.at_work(services.db):
        eventually(lambda: calls[0] > 3, within=20)
    seen = calls[0]
    assert calls[0] == seen


def farm(*words: str, code: int = 0, answer: str = "") -> Result:
    result = CliRunner().invoke(app, list(words), input=answer)
    assert result.exit_code == code, result.output
    return result


def test_the_command_line(
    served: str, api: TestClient, worker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", served)
    old, kept = made(api, worker), made(api, worker)
    for batch in (old, kept):
        age(worker.db, batch, 91)
    assert "is kept for ever" in farm("keep", str(kept)).stdout
    assert (
        "Would go: 1 batch with 2 images"
        in farm("prune", "--older-than", "90d", "--dry-run").stdout
    )
    farm("prune", "--older-than", "90d", answer="n\n", code=1)
    assert api.get(f"/v1/batches/{old}").status_code == 200
    assert "Gone" in farm("prune", "--older-than", "12w", answer="y\n").stdout
    assert api.get(f"/v1/batches/{old}").status_code == 404
    assert "goes when it is old" in farm("keep", str(kept), "--no-longer").stdout
    assert "1 batch" in farm("prune", "--older-than", "1d", "--yes").stdout
    assert "is not an age" in farm("prune", "--older-than", "soon", code=2).output


def test_after_a_fault_of_the_store_all_files_are_looked_at_again(
    api: TestClient,
    services: Services,
    worker: StandIn,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch = made(api, worker)
    orphan = image_path(batch, 9, 1)
    services.images.put(orphan, b"x")
    age(worker.db, batch, 2)
    found, listing = keeper(services, publisher), services.images.listing

    def away(folder: str) -> Iterator[tuple[str, float]]:
        yield from listing(folder)
        if folder == batch_folder(batch):
            raise Unavailable("The disk went away.")

    with monkeypatch.context() as patched:
        patched.setattr(services.images, "listing", away)
        with pytest.raises(Unavailable):
            found.slice(worker.db)
    assert orphan in files(services)
    tidy(found, worker.db)
    assert orphan not in files(services)


def test_a_batch_that_is_opened_again_while_it_is_swept_is_swept_again(
    api: TestClient, worker: StandIn
) -> None:
    batch = made(api, worker)
    api.post(f"/v1/batches/{batch}:retry")
    retention.swept(worker.db, batch)
    assert worker.db.one("SELECT swept_at FROM batches") == {"swept_at": None}


def test_what_workers_told_goes_after_a_week(
    services: Services, publisher: Publisher, tmp_path: Path
) -> None:
    told = ["traces/1.json", "reports/1.json", "memory/1.pickle"]
    young = [path.replace("1", "2") for path in told]
    for path in told + young:
        services.images.put(path, b"x")
    for path in told:
        os.utime(tmp_path / "images" / path, (1, 1))
    tidy(keeper(services, publisher), services.db)
    assert files(services) == set(young)


def test_old_hours_of_usage_are_added_up(services: Services, publisher: Publisher) -> None:
    services.db.all(
        """INSERT INTO usage (worker, session_id, hour, batch_id, checkpoint, use, seconds)
           VALUES ('w', 's', now() - interval '9 days', 0, '', 'waiting', 7) RETURNING 1"""
    )
    tidy(keeper(services, publisher), services.db)
    assert services.db.all("SELECT worker, session_id, seconds FROM usage") == [
        {"worker": "w", "session_id": "", "seconds": 7.0}
    ]


def test_a_store_that_is_not_mounted_is_not_taken_for_an_empty_one(
    api: TestClient, services: Services, worker: StandIn, publisher: Publisher, tmp_path: Path
) -> None:
    batch = made(api, worker)
    age(worker.db, batch, 40)
    store, root = opened(worker.db, str(tmp_path / "images")), tmp_path / "images"
    assert opened(worker.db, str(root)).check() is None
    assert api.get("/readyz").json()["warnings"] == []
    root.rename(tmp_path / "elsewhere")
    root.mkdir()
    found = Housekeeper(store, publisher, Keep(batches=30))
    with pytest.raises(Unavailable, match="is not where this farm keeps its images"):
        found.slice(worker.db)
    for write in (lambda: store.put("a.png", b"x"), lambda: store.probe(1)):
        with pytest.raises(Unavailable, match=r"\.farm-store is not there") as error:
            write()
    assert "Mount it" in str(error.value.remedy)
    assert list(root.iterdir()) == [], "the mount point stays bare"
    (warning,) = api.get("/readyz").json()["warnings"]
    assert "is not where this farm keeps its images" in warning
    assert rows(worker.db, batch)["images"] == 2

    root.rmdir()
    (tmp_path / "elsewhere").rename(root)
    tidy(found, worker.db)
    assert rows(worker.db, batch)["images"] == 0


def test_the_store_of_another_farm_is_not_ours(db: Database, tmp_path: Path) -> None:
    opened(db, str(tmp_path / "ours"))
    ImageStore(str(tmp_path / "theirs")).mark("another")
    with pytest.raises(Unavailable, match=r"\.farm-store says another"):
        opened(db, str(tmp_path / "theirs")).put("a.png", b"x")


def test_a_new_database_takes_over_the_mark_of_its_folder(db: Database, tmp_path: Path) -> None:
    ImageStore(str(tmp_path)).mark("of old")
    opened(db, str(tmp_path)).put("a.png", b"x")
    assert stores.known(db) == "of old"
    assert list(ImageStore(str(tmp_path)).paths()) == ["a.png"]


def test_a_folder_that_cannot_be_marked_is_no_store(db: Database, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="Not a directory"):
        opened(db, str(tmp_path / "file"))
    assert stores.known(db) is None


def test_a_batch_that_is_opened_again_between_two_slices_is_listed_anew(
    api: TestClient,
    services: Services,
    worker: StandIn,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its first files had been looked at when a retry left an orphan among them."""
    monkeypatch.setattr(housekeeping, "FILES", 3)
    batch = made(api, worker, 9)
    age(worker.db, batch, 2)
    found = keeper(services, publisher)
    assert found.slice(worker.db), "it is not through"
    first = min(path for path in files(services) if "-1.png" in path)
    orphan = image_path(batch, 0, 3)
    assert orphan < image_path(batch, 1, 1)
    api.post(f"/v1/batches/{batch}:retry")
    worker.finish(leases.claim(worker.db, [Claim(batch, worker.session, ords=[1])]))
    backlog.finish(worker.db)
    services.images.put(orphan, b"x")
    age(worker.db, batch, 3)
    tidy(found, worker.db)
    assert orphan not in files(services)
    assert first in files(services)


def test_the_doctor_sees_that_the_store_is_not_mounted(db: Database, tmp_path: Path) -> None:
    settings = Settings(database_url=db.url, storage_url=str(tmp_path / "images"))
    assert examine("images", settings).state == "OK", "nobody has used it yet"
    opened(db, settings.storage_url)
    assert examine("images", settings).state == "OK"
    (tmp_path / "images" / ".farm-store").unlink()
    found = examine("images", settings)
    assert found.state == "FAIL"
    assert "Mount it" in str(found.remedy)

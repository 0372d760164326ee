"""Quotas on jobs that wait: what counts, who is refused, and that nothing of it is kept."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from farm.api.__main__ import FROZEN, LONGEST
from farm.api.app import create_app
from farm.api.deps import Services
from farm.api.upload import Upload
from farm.db import batches, loading, quotas, users
from farm.db.batches import NewBatch
from farm.db.database import Connection, Database, connect_options
from farm.errors import QuotaExceeded, Unavailable
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from tests.conftest import eventually
from tests.records import TEMPLATE
from tests.standin import StandIn

MOST = 10


@pytest.fixture
def api(services: Services) -> Iterator[TestClient]:
    """A farm on which a user may have ten jobs that wait."""
    users.local(services.db)
    with TestClient(
        create_app(replace(services, quota=MOST)), base_url="http://localhost:7900"
    ) as client:
        yield client


def submit(api: TestClient, count: int, **more: Any) -> Any:
    headers = more.pop("headers", None)
    return api.post("/v1/batches", json={"prompt": "p", "count": count, **more}, headers=headers)


def send(api: TestClient, count: int) -> Any:
    lines = "".join(json.dumps({"seed": seed}) + "\n" for seed in range(count))
    headers = {"Content-Type": "application/x-ndjson"}
    return api.post("/v1/batches", content=lines.encode(), headers=headers)


def kept(db: Database) -> int:
    rows = db.all("SELECT total FROM batches WHERE state <> 'pruned'")
    return sum(row["total"] for row in rows)


@pytest.mark.parametrize("kind", ["axes", "listed", "stream"])
def test_who_has_too_much_waiting_is_told_and_nothing_is_kept(
    api: TestClient, services: Services, kind: str
) -> None:
    assert submit(api, 7).status_code == 202
    answer = {
        "axes": lambda: submit(api, 2, axes={"steps": [5, 6]}),
        "listed": lambda: api.post("/v1/batches", json={"jobs": [{}] * 4}),
        "stream": lambda: send(api, 4),
    }[kind]()
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (429, "urn:farm:quota-exceeded")
    assert problem["field"] == "quota"
    assert "waiting jobs is 10: 7 wait, and these would be 4 more" in problem["detail"]
    assert "farm share local --quota" in problem["remedy"]
    assert kept(services.db) == 7
    assert services.db.all("SELECT FROM inputs") == []
    assert submit(api, 3).status_code == 202


def test_what_was_begun_ended_or_cancelled_waits_no_more(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    first = int(submit(api, 6).json()["id"])
    second = submit(api, 4).json()["id"]
    assert submit(api, 1).status_code == 429
    worker.claim(first, 2)
    assert submit(api, 2).status_code == 202
    api.post(f"/v1/batches/{second}:pause")
    assert submit(api, 1).status_code == 429, "who is paused still waits"
    api.post(f"/v1/batches/{second}:cancel")
    assert submit(api, 4).status_code == 202


def test_a_repeated_request_is_answered_though_nothing_more_may_wait(api: TestClient) -> None:
    key = {"Idempotency-Key": "k"}
    first = submit(api, MOST, headers=key)
    again = submit(api, MOST, headers=key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"]


def test_each_user_has_their_own_and_an_administrator_may_change_it(
    api: TestClient, services: Services
) -> None:
    db = services.db
    anna = {"Authorization": f"Bearer {users.create_key(db, 'anna')}"}
    assert submit(api, MOST).status_code == 202
    assert submit(api, MOST, headers=anna).status_code == 202
    users.set_share(db, "anna", quota=25)
    assert submit(api, 15, headers=anna).status_code == 202
    assert submit(api, 1, headers=anna).status_code == 429
    users.set_share(db, "anna", unquota=True)
    refused = submit(api, 1, headers=anna).json()
    assert "waiting jobs is 10: 25 wait" in refused["detail"]
    users.set_share(db, "local", quota=0)
    assert "10 wait, and these would be 1 more" in submit(api, 1).json()["detail"]


def test_two_submissions_at_once_cannot_both_pass(services: Services) -> None:
    """Each alone would fit; both have stored their jobs before either is counted."""
    db, answers = services.db, []
    user = users.local(db).id
    spec = BatchSpec(template=TEMPLATE, count=6)

    def submit() -> None:
        try:
            batches.accept(db, NewBatch(user, spec=spec), quota=MOST)
            answers.append("accepted")
        except QuotaExceeded:
            answers.append("refused")

    threads = [threading.Thread(target=submit) for _ in range(2)]
    with Database(db.url) as other:
        with other.connection() as connection:
            connection.execute("SELECT FROM users FOR NO KEY UPDATE")
            for thread in threads:
                thread.start()
            waits = "SELECT FROM pg_locks WHERE NOT granted"
            eventually(lambda: len(db.all(waits)) >= 2)
        for thread in threads:
            thread.join()
    assert sorted(answers) == ["accepted", "refused"]
    assert kept(db) == 6


def test_what_waits_is_counted_only_where_too_much_may(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    """What came is added up; the sum over all batches is made when that is too much, or old."""
    db = services.db

    def told() -> int:
        row = db.one("SELECT waiting_most FROM users WHERE name = 'local'")
        assert row
        return int(row["waiting_most"])

    first = int(submit(api, 6).json()["id"])
    worker.claim(first, 5)
    assert submit(api, 4).status_code == 202
    assert told() == 10, "nothing was taken off for what was begun"
    assert submit(api, 5).status_code == 202
    assert told() == 10, "it was counted: 1 + 4 + 5"
    assert submit(api, 1).status_code == 429

    # An API of the version before has taken more than this one knows of.
    with db.connection() as connection:
        connection.execute("UPDATE users SET waiting_most = 0")
    assert submit(api, 1).status_code == 202
    with db.connection() as connection:
        connection.execute("UPDATE users SET counted_at = now() - interval '61 minutes'")
    refused = submit(api, 1)
    assert refused.status_code == 429
    assert "11 wait, and these would be 1 more" in refused.json()["detail"]


def test_a_long_stream_stops_where_the_quota_is_reached(
    api: TestClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.api.routes.streams._CHUNK", 64)
    assert submit(api, 2).status_code == 202
    answer = send(api, 500)
    assert answer.status_code == 429
    assert "10: 2 wait, and these would be" in answer.json()["detail"]
    states = services.db.all("SELECT state FROM batches ORDER BY id")
    assert [row["state"] for row in states] == ["open", "pruned"]
    stored = services.db.one("SELECT count(*) AS jobs FROM inputs")
    assert stored
    assert stored["jobs"] <= MOST, "and what came before goes with the batch"


@pytest.mark.parametrize("kind", ["listed", "stream"])
def test_jobs_are_stored_before_others_of_the_user_have_to_wait(
    services: Services, kind: str
) -> None:
    """And whoever only wants to know who the user is waits for nobody."""
    db, jobs = services.db, [JobSpec(**TEMPLATE)] * 2  # type: ignore[arg-type]
    user = users.local(db).id

    def submit() -> None:
        if kind == "listed":
            batches.accept(db, NewBatch(user, jobs=jobs), quota=MOST)
        else:
            loading.append(db, loading.begin(db, user), 0, jobs, quota=MOST)

    thread = threading.Thread(target=submit)
    with Database(db.url) as other:
        with other.connection() as connection:
            connection.execute("SELECT FROM users FOR NO KEY UPDATE")
            thread.start()
            eventually(lambda: db.all("SELECT FROM pg_locks WHERE NOT granted"))
            assert users.local(db).id == user
            stored = "SELECT FROM pg_locks WHERE relation = 'inputs'::regclass AND granted"
            assert db.all(stored)
        thread.join()
    assert len(db.all("SELECT FROM inputs")) == 2


def test_who_pauses_in_the_middle_of_an_upload_holds_up_nobody(
    api: TestClient, services: Services
) -> None:
    upload = Upload(services.db, users.local(services.db), None, quota=MOST)
    upload.add([b"{}"] * 4)
    assert submit(api, 6).status_code == 202
    assert submit(api, 1).status_code == 429, "what has come of it counts"
    upload.discard()
    assert submit(api, 4).status_code == 202


def test_who_is_frozen_in_the_middle_of_a_submission_holds_up_nobody_for_long(
    api: TestClient, services: Services
) -> None:
    """An API process that is, while it has its user's row."""
    owner = users.local(services.db).id

    def submitted_meanwhile(frozen: Connection) -> None:
        quotas.check(frozen, owner, most=MOST, added=0)
        assert submit(api, 1).status_code == 202
        quotas.check(frozen, owner, most=MOST, added=0)

    with (
        Database(services.db.url, max_size=1, idle=0.2) as process,
        pytest.raises(Unavailable),
        process.connection() as frozen,
    ):
        submitted_meanwhile(frozen)


def test_the_api_gives_up_such_a_submission_before_others_give_up_on_it() -> None:
    told = connect_options("farm api", longest=LONGEST, idle=FROZEN)["options"]
    limits = {key: int(most) for key, most in re.findall(r"-c (\w+_timeout)=(\d+)", told)}
    assert limits["idle_in_transaction_session_timeout"] < limits["lock_timeout"]

"""What is refused, or was done before, leaves every row of the database as it was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from farm.api.app import create_app
from farm.api.deps import Services
from farm.db import backlog, users
from farm.db.database import Database
from tests.standin import StandIn

TABLES = """
SELECT relname AS name FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'leader'
ORDER BY relname
"""


@pytest.fixture
def api(services: Services) -> Iterator[TestClient]:
    """A farm with four batches of anna's: 1 has ended with an image and a failed job, 2 is
    cancelled, 3 is under way, 4 lists its jobs; six more jobs may wait. Bob may do nothing."""
    db = services.db
    with TestClient(
        create_app(replace(services, quota=10)), base_url="http://localhost:7900"
    ) as client:
        key = users.create_key(db, "anna")
        client.headers["Authorization"] = f"Bearer {key}"
        worker = StandIn(db, services.images)
        body = {"prompt": "p", "checkpoint": "demo"}
        client.post("/v1/batches", json={**body, "count": 2}, headers={"Idempotency-Key": "k"})
        worker.render(1, failing=[1])
        client.post("/v1/batches", json={**body, "count": 3})
        client.post("/v1/batches/2:cancel")
        backlog.finish(db)
        client.post("/v1/batches", json={**body, "count": 3})
        worker.claim(3, 1)
        client.post("/v1/batches", json={**body, "jobs": [{}, {}]})
        users.create_key(db, "bob")
        users.set_share(db, "bob", cap=0)
        yield client


def state(db: Database) -> dict[str, Any]:
    """A digest of all rows of each table."""
    found = {}
    for row in db.all(TABLES):
        digest = db.one(
            f"SELECT md5(string_agg(t::text, '|' ORDER BY t::text)) AS rows FROM {row['name']} t"
        )
        found[row["name"]] = digest
    return found


BATCH = {"prompt": "p", "checkpoint": "demo"}


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        *(("/v1/batches", {**BATCH, "priority": wrong}, (422, "priority"))
          for wrong in (-1, 101, 10**30, 50.5, "urgent", "101", None, [50])),
        *(("PATCH /v1/batches/3", {"priority": wrong}, (422, "priority"))
          for wrong in (-1, 101, 50.5, "soon")),
        ("/v1/batches", {**BATCH, "checkpoint": "nowhere"}, (422, "checkpoint")),
        ("/v1/batches", {**BATCH, "tags": ["a100"]}, (422, "tags")),
        ("/v1/batches", {**BATCH, "count": 7}, (429, "quota")),
        ("/v1/batches", {**BATCH, "wait_for_worker": "perhaps"}, (422, "wait_for_worker")),
        ("/v1/batches/2:cancel", None, (200, None)),
        ("/v1/batches/1:cancel", None, (200, None)),
        ("/v1/batches/2:pause", None, (200, None)),
        ("/v1/batches/2:resume", None, (200, None)),
        ("/v1/batches/1:pause", None, (200, None)),
        ("/v1/batches/2:retry", None, (409, "batch")),
        ("/v1/batches/3:retry", None, (200, None)),
        ("/v1/jobs/1-0:retry", None, (409, "job")),
        ("/v1/jobs/2-0:retry", None, (409, "batch")),
        ("/v1/jobs/3-0:retry", None, (200, None)),
        ("/v1/jobs/1-9:retry", None, (404, "job")),
        ("/v1/batches/9:cancel", None, (404, "batch")),
    ],
)  # fmt: skip
def test_what_is_refused_or_done_already_changes_nothing(
    api: TestClient, services: Services, path: str, body: Any, told: tuple[int, str | None]
) -> None:
    before = state(services.db)
    method, _, address = path.rpartition(" ")
    answer = api.request(method or "POST", address, json=body)
    assert (answer.status_code, answer.json().get("field")) == told, answer.text
    if told[1]:
        assert answer.json()["remedy"]
    assert state(services.db) == before


@pytest.mark.parametrize(
    ("listing", "other"),
    [
        ("/v1/batches?limit=1", "/v1/failures"),
        ("/v1/batches?limit=1", "/v1/batches/3/jobs"),
        ("/v1/batches/3/jobs?limit=1", "/v1/batches/4/jobs"),
        ("/v1/batches/3/jobs?limit=1", "/v1/batches/3/jobs?state=pending"),
        ("/v1/batches/3/jobs?limit=1", "/v1/batches"),
    ],
)
def test_a_cursor_is_of_one_listing(
    api: TestClient, services: Services, listing: str, other: str
) -> None:
    cursor = api.get(listing).json()["next_cursor"]
    before = state(services.db)
    joint = "&" if "?" in other else "?"
    problem = api.get(f"{other}{joint}cursor={cursor}").json()
    assert (problem["status"], problem["field"], problem["value"]) == (422, "cursor", cursor)
    assert "next_cursor" in problem["remedy"]
    assert state(services.db) == before


def test_who_may_have_nothing_in_flight_is_told(services: Services, api: TestClient) -> None:
    bob = {"Authorization": f"Bearer {users.create_key(services.db, 'bob')}"}
    before = state(services.db)
    problem = api.post("/v1/batches", json=BATCH, headers=bob).json()
    assert (problem["status"], problem["field"], problem["value"]) == (403, "user", "bob")
    assert "farm share bob --cap N" in problem["remedy"]
    assert state(services.db) == before


def test_a_key_that_was_used_for_another_request(services: Services, api: TestClient) -> None:
    before = state(services.db)
    answer = api.post("/v1/batches", json=BATCH, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["field"]) == (409, "Idempotency-Key")
    assert state(services.db) == before

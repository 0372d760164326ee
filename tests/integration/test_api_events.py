"""Following a batch, with and without a broker; readiness when a part is missing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from farm.api.app import create_app
from farm.api.deps import Services
from farm.broker import Progress
from farm.client import Batch, Farm
from farm.db import users
from farm.db.database import Database
from tests.conftest import eventually
from tests.serving import serving
from tests.standin import StandIn

NO_BROKER = "redis://127.0.0.1:1/0"
NO_DATABASE = "postgresql://127.0.0.1:1/none"


@pytest.fixture
def batch(served: str) -> Iterator[Batch]:
    with Farm(served) as farm:
        yield farm.submit(prompt="a lion", count=3)


def test_a_batch_is_followed_to_its_end(batch: Batch, worker: StandIn) -> None:
    seen: list[tuple[str, Any]] = []
    for name, data in batch.events():
        seen.append((name, data["counts"]["succeeded"]))
        if len(seen) == 1:
            worker.finish(worker.claim(int(batch.id), 1))
        elif batch.counts["succeeded"] == 1:
            worker.render(int(batch.id))
    assert seen[0] == ("batch", 0)
    assert ("batch", 1) in seen
    assert seen[-2:] == [("batch", 3), ("end", 3)]
    assert batch.ended


def test_progress_comes_through_the_broker(batch: Batch, worker: StandIn, broker_url: str) -> None:
    step = {"job": f"{batch.id}-0", "step": 5, "steps": 20}
    heard, done = [], threading.Event()

    def tell() -> None:
        progress = Progress(broker_url)
        while not done.wait(0.05):
            progress.tell(int(batch.id), step)
        progress.close()

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        for name, data in batch.events():
            if name == "progress" and not heard:
                heard.append(data)
                worker.render(int(batch.id))
    finally:
        done.set()
        thread.join()
    assert heard == [step]


def test_the_stream_of_an_ended_batch_ends_at_once(batch: Batch) -> None:
    batch.cancel()
    assert [name for name, _ in batch.events()] == ["batch", "end"]


def test_without_a_broker_batches_are_taken_and_followed(
    services: Services, worker: StandIn
) -> None:
    app = create_app(replace(services, broker_url=NO_BROKER))
    with TestClient(app, base_url="http://localhost") as api:
        made = api.post("/v1/batches", json={"prompt": "a lion"}).json()
        worker.render(int(made["id"]))
        stream = api.get(made["links"]["events"]).text
        assert "event: end" in stream
        ready = api.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["parts"]["database"] == "ok"
        assert "FARM_BROKER_URL" in ready.json()["parts"]["broker"]
        assert api.get("/healthz").status_code == 200


def test_without_a_database_every_answer_says_so(services: Services) -> None:
    with Database(NO_DATABASE) as nowhere:
        app = create_app(replace(services, db=nowhere))
        with TestClient(app, base_url="http://localhost") as api:
            assert api.get("/healthz").status_code == 200
            ready = api.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["parts"]["broker"] == "ok"
            assert ready.json()["parts"]["schema"] == "unknown"
            refused = api.post("/v1/batches", json={"prompt": "a lion"})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert "Postgres" in refused.json()["detail"]


def test_an_old_schema_is_not_ready(services: Services) -> None:
    services.db.all("UPDATE alembic_version SET version_num = '0000' RETURNING version_num")
    with TestClient(create_app(services), base_url="http://localhost") as api:
        ready = api.get("/readyz")
        assert ready.status_code == 503
        assert "farm migrate" in ready.json()["parts"]["schema"]


def follow(url: str, batch: str, key: str = "") -> AbstractContextManager[httpx.Response]:
    headers = {"X-API-Key": key} if key else {}
    address = f"{url}/v1/batches/{batch}/events"
    return httpx.stream("GET", address, headers=headers, trust_env=False, timeout=20)


def status(url: str, batch: str, key: str = "") -> int:
    with follow(url, batch, key) as answer:
        return answer.status_code


def test_a_client_follows_so_many_batches_at_once_and_again_when_it_has_gone(
    services: Services,
) -> None:
    few = replace(services, streams=3, streams_each=2)
    with serving(create_app(few)) as url, Farm(url) as farm, ExitStack() as opened:
        id = farm.submit(prompt="a lion").id
        for _ in range(2):
            assert opened.enter_context(follow(url, id)).status_code == 200
        with follow(url, id) as refused:
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) > 0
            assert refused.headers["content-type"] == "application/problem+json"
            assert "127.0.0.1 has 2" in json.loads(refused.read())["detail"]
        # Whoever is known by a key is no part of their address.
        ann = users.create_key(services.db, "ann")
        assert opened.enter_context(follow(url, id, ann)).status_code == 200
        assert status(url, id, users.create_key(services.db, "bob")) == 429  # there are three
        opened.close()
        eventually(lambda: few.seats.free == 3)
        assert [status(url, "99") for _ in range(4)] == [404] * 4
        eventually(lambda: few.seats.free == 3)

"""Who may change something: holders of a key, or the person at this machine."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.types import Message

from farm.api.app import create_app
from farm.api.deps import Services
from farm.db import users
from tests.serving import serving


@pytest.fixture
def shared(services: Services) -> Iterator[TestClient]:
    """A farm for many, under a name of its own."""
    app = create_app(replace(services, local=False))
    with TestClient(app, base_url="https://farm.example") as client:
        yield client


@pytest.fixture
def key(services: Services) -> str:
    return users.create_key(services.db, "ann")


REQUEST = {"prompt": "a lion"}


def changing(app: FastAPI) -> list[tuple[str, str]]:
    """Method and address of whatever changes something."""
    return [
        (method.upper(), re.sub("{.*?}", "1", path))
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if method != "get"
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer farm_nobody"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic YTpi"},
        {"X-API-Key": "farm_nobody"},
        {"X-API-Key": "\xff"},
    ],
)
@pytest.mark.parametrize("address", ["/v1/batches", "/v1/batches/1:cancel"])
def test_nothing_is_changed_without_a_key(
    shared: TestClient, headers: dict[str, str], address: str
) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = shared.post(address, json=REQUEST, headers=raw)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["remedy"]
    assert shared.get("/v1/batches").json()["batches"] == []


def test_whatever_changes_something_needs_a_key(shared: TestClient) -> None:
    assert len(changing(shared.app)) > 15
    for method, address in changing(shared.app):
        answer = shared.request(method, address, json={})
        assert answer.status_code == 401, f"{method} {address}: {answer.text}"
    lines = {"content-type": "application/x-ndjson"}
    assert shared.post("/v1/batches", content=b"{}\n", headers=lines).status_code == 401


@pytest.mark.parametrize("headers", [[], [(b"x-api-key", b"farm_nobody")]])
@pytest.mark.parametrize("kind", [b"application/json", b"application/x-ndjson"])
def test_no_body_is_read_without_a_key(
    services: Services, headers: list[tuple[bytes, bytes]], kind: bytes
) -> None:
    answers = []

    async def receive() -> Message:
        pytest.fail("the body was asked for")

    async def send(message: Message) -> None:
        answers.append(message)

    app = create_app(replace(services, local=False))
    for method, address in changing(app):
        about = {"type": "http", "method": method, "path": address, "query_string": b""}
        asyncio.run(app({**about, "headers": [*headers, (b"content-type", kind)]}, receive, send))
        assert answers.pop(0)["status"] == 401, f"{method} {address}"
        answers.clear()


def test_who_is_refused_is_answered_before_the_body_has_come(services: Services) -> None:
    with serving(create_app(replace(services, local=False))) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            head = "POST /v1/batches HTTP/1.1\r\nHost: farm\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 30000000\r\n\r\n{{".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("form", ["bearer", "header"])
def test_a_key_says_who_submits(shared: TestClient, key: str, form: str) -> None:
    headers = {"Authorization": f"Bearer {key}"} if form == "bearer" else {"X-API-Key": key}
    answer = shared.post("/v1/batches", json=REQUEST, headers=headers)
    assert answer.status_code == 202
    assert answer.json()["user"] == "ann"
    assert shared.post(answer.json()["links"]["cancel"], headers=headers).status_code == 200


def test_users_have_their_own_idempotency_keys(
    shared: TestClient, services: Services, key: str
) -> None:
    other = users.create_key(services.db, "bob")
    made = [
        shared.post(
            "/v1/batches",
            json=REQUEST,
            headers={"X-API-Key": each, "Idempotency-Key": "same"},
        ).json()["id"]
        for each in (key, other)
    ]
    assert made[0] != made[1]


def test_a_local_farm_asks_for_no_key(api: TestClient) -> None:
    answer = api.post("/v1/batches", json=REQUEST)
    assert answer.json()["user"] == "local"


def test_a_local_farm_still_refuses_a_wrong_key(api: TestClient) -> None:
    answer = api.post("/v1/batches", json=REQUEST, headers={"X-API-Key": "farm_nobody"})
    assert answer.status_code == 401


def test_a_local_farm_is_not_for_pages_of_other_sites(api: TestClient) -> None:
    rebound = api.post("/v1/batches", json=REQUEST, headers={"Host": "evil.example"})
    foreign = api.post("/v1/batches", json=REQUEST, headers={"Origin": "https://evil.example"})
    assert (rebound.status_code, foreign.status_code) == (403, 403)
    assert api.get("/v1/batches").json()["batches"] == []


CHANGES = [
    ("POST", ":cancel", None),
    ("POST", ":pause", None),
    ("POST", ":resume", None),
    ("PATCH", "", {"priority": 10}),
]


@pytest.mark.parametrize(("method", "what", "body"), CHANGES)
def test_a_batch_is_changed_by_its_owner_and_by_administrators_only(
    shared: TestClient,
    services: Services,
    key: str,
    *,
    method: str,
    what: str,
    body: dict[str, int] | None,
) -> None:
    made = shared.post("/v1/batches", json=REQUEST, headers={"X-API-Key": key}).json()
    keys = {
        "bob": users.create_key(services.db, "bob"),
        "root": users.create_key(services.db, "root", admin=True),
    }

    def ask(who: str) -> int:
        address = made["links"]["self"] + what
        headers = {"X-API-Key": keys.get(who, key)}
        answer = shared.request(method, address, json=body, headers=headers)
        if answer.status_code == 403:
            assert answer.json()["field"] == "batch"
            assert "ann's" in answer.json()["detail"]
        return answer.status_code

    before = shared.get(made["links"]["self"]).json()
    assert ask("bob") == 403
    assert shared.get(made["links"]["self"]).json() == before
    assert [ask("root"), ask("ann")] == [200, 200]
    assert shared.request(method, f"/v1/batches/99{what}", json=body).status_code == 401


def test_what_workers_hold_is_for_administrators(
    shared: TestClient, services: Services, key: str
) -> None:
    answer = shared.post("/v1/assets/checkpoint/demo:evict", headers={"X-API-Key": key})
    assert answer.status_code == 403
    root = users.create_key(services.db, "root", admin=True)
    answer = shared.post("/v1/assets/checkpoint/demo:evict", headers={"X-API-Key": root})
    assert answer.status_code == 404  # no worker is alive


def test_an_administrator_stays_one_with_a_second_key(services: Services) -> None:
    users.create_key(services.db, "root", admin=True)
    second = users.for_key(services.db, users.create_key(services.db, "root"))
    assert second
    assert second.admin

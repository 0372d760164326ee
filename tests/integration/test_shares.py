"""Users' weights, caps and quotas: by HTTP, and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from click.testing import Result
from starlette.testclient import TestClient
from typer.testing import CliRunner

from farm.api.app import create_app
from farm.api.deps import Services
from farm.cli.main import app
from farm.cli.share import _fairness
from farm.db import batches, users
from farm.db.batches import NewBatch
from farm.spec.batch import BatchSpec
from tests.records import TEMPLATE
from tests.standin import StandIn

IDLE = {
    "waiting": 0,
    "longest_wait": None,
    "median_wait": None,
    "gpu_seconds": 0,
    "throughout": False,
}


@pytest.fixture
def shared(services: Services) -> Iterator[TestClient]:
    """A farm for many, in which anna has a key, and root runs it."""
    with TestClient(
        create_app(replace(services, local=False)), base_url="https://farm.example"
    ) as client:
        client.anna = key(services, "anna")  # type: ignore[attr-defined]
        client.headers = key(services, "root", admin=True)  # type: ignore[assignment]
        yield client


def key(services: Services, name: str, *, admin: bool = False) -> dict[str, str]:
    return {"X-API-Key": users.create_key(services.db, name, admin=admin)}


def test_they_are_listed_and_changed_one_by_one(shared: TestClient, services: Services) -> None:
    changed = shared.patch("/v1/users/anna", json={"weight": 2.5, "cap": 64})
    anna = {"name": "anna", "admin": False, "weight": 2.5, "cap": 64, "quota": None, **IDLE}
    assert (changed.status_code, changed.json()) == (200, anna)
    shared.patch("/v1/users/anna", json={"quota": 0})
    assert shared.get("/v1/users").json()["users"] == [
        {**anna, "quota": 0},
        {"name": "root", "admin": True, "weight": 1, "cap": None, "quota": None, **IDLE},
    ]
    shared.patch("/v1/users/anna", json={"cap": None})
    assert shared.get("/v1/users").json()["users"][0] == {**anna, "quota": 0, "cap": None}
    shared.patch("/v1/users/anna", json={"quota": None})
    row = next(row for row in users.shares(services.db) if row["name"] == "anna")
    assert (row["weight"], row["max_in_flight"], row["max_waiting"]) == (2.5, None, None)


@pytest.fixture
def busy(shared: TestClient, services: Services) -> dict[str, int]:
    """Users whose jobs have waited for a quarter of an hour, and some who do not count: what each
    of them had, in images of 1.5 GPU-seconds."""
    had = {"anna": 6, "bert": 2, "capped": 9, "late": 9, "paused": 9, "urgent": 9, "idle": 9}
    db, worker = services.db, StandIn(services.db, services.images)
    for name, images in had.items():
        if name != "anna":
            key(services, name)
        user = db.one("SELECT id FROM users WHERE name = %(name)s", {"name": name})
        assert user
        total = images if name == "idle" else 20
        new = NewBatch(
            user["id"],
            spec=BatchSpec(template=TEMPLATE, count=total),
            priority=90 if name == "urgent" else 50,
        )
        batch = batches.accept(db, new).id
        worker.finish(worker.claim(batch, images))
        if name == "paused":
            batches.pause(db, batch)
        if name != "late":
            with db.connection() as connection:
                connection.execute(
                    "UPDATE batches SET created_at = now() - interval '15 minutes' WHERE id = %s",
                    (batch,),
                )
    users.set_share(db, "anna", weight=2)
    users.set_share(db, "capped", cap=3)
    return had


def test_how_equal_their_parts_are(
    shared: TestClient, services: Services, busy: dict[str, int]
) -> None:
    """Of those who could have had more all along: anna by her weight 4.5 s, and bert 3 s."""
    told = shared.get("/v1/users").json()
    found = {user["name"]: user for user in told["users"]}
    assert {name for name in found if found[name]["throughout"]} == {"anna", "bert"}
    assert told["fairness"] == {"seconds": 600, "users": 2, "jain": pytest.approx(0.9615, abs=1e-4)}
    assert {name: found[name]["gpu_seconds"] for name in busy} == {
        name: 1.5 * images for name, images in busy.items()
    }
    assert found["anna"]["median_wait"] == 0.5
    assert 900 <= found["anna"]["longest_wait"] < 960
    assert found["late"]["longest_wait"] < 60
    assert found["idle"]["longest_wait"] is found["paused"]["longest_wait"] is None
    assert (found["paused"]["waiting"], found["idle"]["waiting"]) == (11, 0)

    with services.db.connection() as connection:  # half of what anna had is too long ago
        connection.execute(
            """UPDATE attempts SET ended_at = now() - interval '11 minutes' WHERE ord < 2
               AND batch_id = (SELECT min(id) FROM batches)"""
        )
    assert shared.get("/v1/users").json()["fairness"]["jain"] == pytest.approx(1)
    users.set_share(services.db, "bert", cap=3)
    alone = shared.get("/v1/users").json()["fairness"]
    assert alone == {"seconds": 600, "users": 1, "jain": None}


@pytest.mark.parametrize("headers", ["nobody", "anna"])
def test_only_administrators_see_and_change_them(shared: TestClient, headers: str) -> None:
    sent = {"anna": shared.anna, "nobody": {"X-API-Key": ""}}[headers]  # type: ignore[attr-defined]
    expected = {"anna": 403, "nobody": 401}[headers]
    assert shared.get("/v1/users", headers=sent).status_code == expected
    answer = shared.patch("/v1/users/anna", json={"weight": 9}, headers=sent)
    assert answer.status_code == expected
    assert shared.get("/v1/users").json()["users"][0]["weight"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "weight"),
        ({"weight": 0}, "weight"),
        ({"weight": 1e-50}, "weight"),
        ({"weight": 1001}, "weight"),
        ({"weight": None}, "weight"),
        ({"cap": -1}, "cap"),
        ({"cap": 2**31}, "cap"),
        ({"quota": -1}, "quota"),
        ({"quota": 2**60}, "quota"),
        ({"caps": 1}, "caps"),
        ({"admin": True}, "admin"),
    ],
)
def test_what_is_no_share_is_named(shared: TestClient, body: dict[str, Any], field: str) -> None:
    answer = shared.patch("/v1/users/anna", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize("name", ["bob", "a%2Fb", "anna%20"])
def test_nobody_of_that_name(shared: TestClient, name: str) -> None:
    answer = shared.patch(f"/v1/users/{name}", json={"cap": 1})
    assert (answer.status_code, answer.json()["field"]) == (404, "user")


def test_how_equal_they_are_in_words() -> None:
    told = _fairness({"seconds": 600.0, "users": 3, "jain": 0.98765})
    assert told.endswith("3 users whose jobs have waited for 10 minutes: 0.988 (1 is equal)")


def test_the_command_line(served: str, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "the team/of Zoë"
    for name in ("anna", odd):
        users.create_key(services.db, name)
    monkeypatch.setenv("FARM_URL", served)

    def share(*words: str) -> Result:
        return CliRunner().invoke(app, ["share", *words])

    told = share("anna", "--weight", "2.5", "--cap", "64", "--quota", "5000")
    assert told.exit_code == 0, told.output
    waits = ["0", "-", "-", "-"]
    assert told.output.split()[-8:] == ["anna", "2.5", "64", "5000", *waits]
    assert share("anna", "--no-cap").output.split()[-7:] == ["2.5", "-", "5000", *waits]
    assert share("anna", "--no-quota").output.split()[-7:] == ["2.5", "-", "-", *waits]
    assert share("anna").output.split()[-7:] == ["2.5", "-", "-", *waits]
    assert share(odd, "--cap", "7").output.split()[-6:] == ["7", "-", *waits]
    assert "anna" in share().output
    assert "compared between users whose jobs have waited for 10 minutes" in share().output
    assert json.loads(share("--json").output)["fairness"]["jain"] is None
    for words in (["nobody"], ["nobody", "--weight", "2"]):
        unknown = share(*words)
        assert (unknown.exit_code, "no user nobody" in unknown.output) == (3, True)
    for option in ("--weight", "--cap", "--quota"):
        assert share("anna", option, "-1").exit_code == 2
        assert share("anna", option, str(10**30)).exit_code == 2

"""Users' weights, caps and quotas: by HTTP, and on the command line."""

from __future__ import annotations

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
from farm.db import users


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
    anna = {"name": "anna", "admin": False, "weight": 2.5, "cap": 64, "quota": None, "waiting": 0}
    assert (changed.status_code, changed.json()) == (200, anna)
    shared.patch("/v1/users/anna", json={"quota": 0})
    assert shared.get("/v1/users").json()["users"] == [
        {**anna, "quota": 0},
        {"name": "root", "admin": True, "weight": 1, "cap": None, "quota": None, "waiting": 0},
    ]
    shared.patch("/v1/users/anna", json={"cap": None})
    assert shared.get("/v1/users").json()["users"][0] == {**anna, "quota": 0, "cap": None}
    shared.patch("/v1/users/anna", json={"quota": None})
    row = next(row for row in users.shares(services.db) if row["name"] == "anna")
    assert (row["weight"], row["max_in_flight"], row["max_waiting"]) == (2.5, None, None)


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


@pytest.mark.parametrize("name", ["bob", "%00", "a%2Fb", "anna%20"])
def test_nobody_of_that_name(shared: TestClient, name: str) -> None:
    answer = shared.patch(f"/v1/users/{name}", json={"cap": 1})
    assert (answer.status_code, answer.json()["field"]) == (404, "user")


def test_the_command_line(served: str, services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = "the team/of Zoë"
    for name in ("anna", odd):
        users.create_key(services.db, name)
    monkeypatch.setenv("FARM_URL", served)

    def share(*words: str) -> Result:
        return CliRunner().invoke(app, ["share", *words])

    told = share("anna", "--weight", "2.5", "--cap", "64", "--quota", "5000")
    assert told.exit_code == 0, told.output
    assert told.output.split()[-5:] == ["anna", "2.5", "64", "5000", "0"]
    assert share("anna", "--no-cap").output.split()[-4:] == ["2.5", "-", "5000", "0"]
    assert share("anna", "--no-quota").output.split()[-4:] == ["2.5", "-", "-", "0"]
    assert share("anna").output.split()[-4:] == ["2.5", "-", "-", "0"]
    assert share(odd, "--cap", "7").output.split()[-3:] == ["7", "-", "0"]
    assert "anna" in share().output
    for words in (["nobody"], ["nobody", "--weight", "2"]):
        unknown = share(*words)
        assert (unknown.exit_code, "no user nobody" in unknown.output) == (3, True)
    for option in ("--weight", "--cap", "--quota"):
        assert share("anna", option, "-1").exit_code == 2
        assert share("anna", option, str(10**30)).exit_code == 2

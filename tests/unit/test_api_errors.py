"""Every error becomes problem+json that a client can read and act on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from farm.api import errors
from farm.errors import FarmError
from farm.spec.job import JobSpec

KINDS = [kind for kind in FarmError.__subclasses__() if kind.status != 500]
_HUGE = st.builds(lambda: 10**5000)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.builds(lambda: 10**5000),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def client_of(app: FastAPI) -> TestClient:
    errors.install(app)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()

    @app.get("/raise/{number}")
    def fail(number: int) -> None:
        raise KINDS[number]("It is wrong.", field="steps", value=0, remedy="Use 1.")

    @app.get("/secret")
    def secret() -> None:
        raise FarmError("postgres password is 1234")

    @app.post("/job")
    def take(job: JobSpec) -> None:
        pass

    return client_of(app)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_error_has_its_status_and_names_its_cause(
    client: TestClient, kind: type[FarmError]
) -> None:
    answer = client.get(f"/raise/{KINDS.index(kind)}")
    assert answer.status_code == kind.status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": f"urn:farm:{kind.title.lower().replace(' ', '-')}",
        "title": kind.title,
        "status": kind.status,
        "detail": "It is wrong.",
        "class": kind.failure_class,
        "field": "steps",
        "value": 0,
        "remedy": "Use 1.",
    }


def test_our_own_faults_are_not_told(client: TestClient) -> None:
    answer = client.get("/secret")
    assert answer.status_code == 500
    assert "1234" not in answer.text


def test_an_address_cannot_write_lines_of_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    errors.of_fault(ValueError("x"), "GET", "/v1/batches/1\n2026-11-23 INFO api: all is well")
    (record,) = caplog.records
    assert "\n" not in record.getMessage()


def test_all_findings_are_listed(client: TestClient) -> None:
    wrong = {"width": 100, "height": "tall", "steps": 0, "seed": 1, "colour": "red"}
    answer = client.post("/job", json=wrong)
    assert answer.status_code == 422
    problem = answer.json()
    found = {error["field"]: error for error in problem["errors"]}
    assert set(found) == {"checkpoint", "width", "height", "steps", "colour"}
    assert found["width"]["remedy"] == "Use a multiple of 8, for example 96."
    assert found["steps"]["value"] == 0
    assert all(error["remedy"] for error in found.values())
    assert problem["detail"] == problem["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("body", "headers", "field"),
    [
        (b"{", {"content-type": "application/json"}, "body"),
        (b"\xff", {"content-type": "application/json"}, "body"),
        (b"[" * 100_000, {"content-type": "application/json"}, "body"),
        (b"9" * 5000, {"content-type": "application/json"}, "body"),
        (b'{"a": 1', {}, "Content-Type"),
        (b"prompt=x", {"content-type": "application/x-www-form-urlencoded"}, "Content-Type"),
        (b"", {}, "body"),
        (b"[]", {"content-type": "application/json"}, "body"),
        (b'"\\ud800"', {"content-type": "application/json"}, "body"),
    ],
)
def test_an_unreadable_body_is_the_clients_fault(
    client: TestClient, body: bytes, headers: dict[str, str], field: str
) -> None:
    answer = client.post("/job", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == field
    assert answer.json()["remedy"]


def test_what_is_not_there_and_what_cannot_be_done(client: TestClient) -> None:
    assert client.get("/nowhere").json()["status"] == 404
    answer = client.put("/job")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["title"] == "Method not allowed"


@given(value=JSON)
def test_any_value_can_be_shown(value: Any) -> None:
    answer = errors.problem(422, "Invalid input", "It is wrong.", value=value)
    json.loads(bytes(answer.body), parse_constant=pytest.fail)

"""Who is heard, how large a body may be, and that no fault reaches a client as a traceback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from farm.api import guard
from farm.api.guard import Guard


async def _answer(scope, receive, send) -> None:
    request = Request(scope, receive)
    if request.url.path == "/fault":
        raise RuntimeError("a secret of the server")
    response: Response = PlainTextResponse(str(len(await request.body())))
    await response(scope, receive, send)


def client(*, local: bool) -> TestClient:
    app = Guard(_answer, local=local)
    return TestClient(app, base_url="http://localhost:7900", raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("host", "heard"),
    [
        ("localhost", True),
        ("LOCALHOST:7900", True),
        ("127.0.0.1", True),
        ("127.0.0.1:1", True),
        ("[::1]", True),
        ("[::1]:7900", True),
        ("farm.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
def test_a_local_farm_hears_only_requests_to_this_machine(host: str, heard: bool) -> None:
    answer = client(local=True).get("/", headers={"Host": host})
    assert answer.status_code == (200 if heard else 403)
    if not heard:
        assert answer.json()["field"] == "Host"


@pytest.mark.parametrize(
    ("method", "origin", "heard"),
    [
        ("POST", None, True),
        ("POST", "http://localhost:7900", True),
        ("POST", "http://localhost:8000", False),
        ("POST", "https://evil.example", False),
        ("POST", "null", False),
        ("GET", "https://evil.example", True),
    ],
)
def test_a_local_farm_takes_no_orders_from_pages_of_other_sites(
    method: str, origin: str | None, heard: bool
) -> None:
    headers = {"Origin": origin} if origin else {}
    answer = client(local=True).request(method, "/", headers=headers)
    assert answer.status_code == (200 if heard else 403)


def test_a_farm_with_keys_is_heard_under_any_name() -> None:
    headers = {"Host": "farm.example", "Origin": "https://elsewhere.example"}
    assert client(local=False).post("/", headers=headers).status_code == 200


def test_a_body_that_says_it_is_too_large_is_refused_unread() -> None:
    answer = client(local=True).post("/", headers={"Content-Length": "9" * 5000})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_body_that_turns_out_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 100)

    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 60] * 3

    # Outside an application the refusal is an exception; test_api_bad_input has the answer.
    answer = client(local=True).post("/", content=chunks())
    assert answer.status_code in (413, 500)
    assert client(local=True).post("/", content=b"x" * 100).text == "100"


def test_a_fault_is_answered_with_a_number_and_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    answer = client(local=True).get("/fault")
    assert answer.status_code == 500
    problem = answer.json()
    assert "secret" not in answer.text
    assert problem["id"] in problem["detail"]
    assert problem["id"] in caplog.text
    assert "a secret of the server" in caplog.text

"""The client against a server that misbehaves by script."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from farm.client import Farm, transport
from farm.client.transport import Transport
from farm.errors import (
    CheckpointError,
    Conflict,
    FarmError,
    InvalidInput,
    LoraError,
    NotFound,
    Unauthorized,
    Unavailable,
)

BATCH = {"id": "7", "ended": False, "total": 2, "links": {"self": "/v1/batches/7"}}
Answer = tuple[int, str, bytes] | None
"""Status, content type, body; None drops the connection without a word."""


class Script(ThreadingHTTPServer):
    """Answers with one entry of ``answers`` after the other, the last one for ever."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answer] = []
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def _play(self) -> None:
        server = self.server
        assert isinstance(server, Script)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.requests.append((self.command, self.path, headers, body))
        answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        status, kind, content = answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _play

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def script() -> Iterator[Script]:
    server = Script()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pauses, and nothing of this machine's own farm."""
    monkeypatch.setattr(transport, "_PAUSES", (0.0, 0.0, 0.0))
    for name in ("FARM_URL", "FARM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))


def ok(document: Any) -> Answer:
    return 200, "application/json", json.dumps(document).encode()


def problem(status: int, title: str) -> Answer:
    told = {"title": title, "status": status, "detail": "No.", "field": "steps", "remedy": "Do."}
    return status, "application/problem+json", json.dumps(told).encode()


@pytest.mark.parametrize(
    ("status", "title", "kind"),
    [
        (422, "Invalid input", InvalidInput),
        (422, "Unusable checkpoint", CheckpointError),
        (422, "Unusable LoRA", LoraError),
        (401, "Not authorised", Unauthorized),
        (403, "Forbidden", Unauthorized),
        (404, "Not found", NotFound),
        (409, "Conflict", Conflict),
        (413, "Content Too Large", InvalidInput),
        (500, "Farm failed", FarmError),
        (503, "Unavailable", Unavailable),
    ],
)
def test_a_problem_becomes_the_error_it_was(
    script: Script, status: int, title: str, kind: type[FarmError]
) -> None:
    script.answers = [problem(status, title)]
    with pytest.raises(FarmError) as caught:
        Farm(script.url).workers()
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.field, caught.value.remedy) == (
        "No.",
        "steps",
        "Do.",
    )


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"null", b'{"x": 1}', b"\xff"])
def test_an_answer_that_is_no_farms_is_told(script: Script, body: bytes) -> None:
    script.answers = [(404, "text/html", body)]
    with pytest.raises(NotFound, match="answered 404 and nothing readable"):
        Farm(script.url).workers()


@pytest.mark.parametrize("trouble", [None, problem(503, "Unavailable"), (502, "text/html", b"")])
def test_a_request_without_an_answer_is_repeated_under_the_same_key(
    script: Script, trouble: Answer
) -> None:
    script.answers = [trouble, trouble, ok(BATCH)]
    assert Farm(script.url).submit(prompt="a lion").id == "7"
    posts = [(method, path, body) for method, path, _, body in script.requests]
    assert posts == [("POST", "/v1/batches", posts[0][2])] * 3
    keys = {headers["idempotency-key"] for _, _, headers, _ in script.requests}
    assert len(keys) == 1


def test_two_submissions_have_two_keys(script: Script) -> None:
    script.answers = [ok(BATCH)]
    farm = Farm(script.url)
    farm.submit(prompt="a lion")
    farm.submit(prompt="a lion")
    one, other = (headers["idempotency-key"] for _, _, headers, _ in script.requests)
    assert one != other


def test_what_is_wrong_is_not_repeated(script: Script) -> None:
    script.answers = [problem(422, "Invalid input")]
    with pytest.raises(InvalidInput):
        Farm(script.url).submit(steps=0)
    assert len(script.requests) == 1


def test_no_farm_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(Unavailable) as caught:
        Farm(f"http://127.0.0.1:{port}").workers()
    assert f"No farm answers at http://127.0.0.1:{port}" in caught.value.message
    assert "farm up" in str(caught.value.remedy)


@pytest.mark.parametrize("url", ["", "here", "ftp://host", "http://", "http://[::1", "//host"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Transport(url)
    assert caught.value.field == "url"


def test_the_farm_of_this_machine_is_found_by_its_folder(script: Script, tmp_path: Path) -> None:
    script.answers = [ok({"workers": []})]
    (tmp_path / "farm.json").write_text(json.dumps({"url": script.url, "pid": 1}))
    (tmp_path / "api_key").write_text("farm_secret\n")
    assert Farm().url == script.url
    Farm().workers()
    assert script.requests[-1][2]["authorization"] == "Bearer farm_secret"


def test_a_told_address_comes_first_and_never_gets_the_kept_key(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.answers = [ok({"workers": []})]
    (tmp_path / "farm.json").write_text(json.dumps({"url": "http://127.0.0.1:1", "pid": 1}))
    (tmp_path / "api_key").write_text("farm_secret\n")
    monkeypatch.setenv("FARM_URL", script.url)
    Farm().workers()
    assert "authorization" not in script.requests[-1][2]
    Farm(script.url, key="mine").workers()
    assert script.requests[-1][2]["authorization"] == "Bearer mine"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_announcement_means_the_usual_address(tmp_path: Path, text: str) -> None:
    (tmp_path / "farm.json").write_text(text)
    assert Farm().url == "http://127.0.0.1:7900"


@pytest.mark.parametrize("id", ["..", "a/b", "?", "#", "", "é", "7:cancel"])
def test_an_odd_id_stays_one_segment_of_the_address(script: Script, id: str) -> None:
    script.answers = [problem(404, "Not found")]
    with pytest.raises(NotFound):
        Farm(script.url).batch(id)
    path = script.requests[-1][1]
    assert path.startswith("/v1/batches/")
    assert path.count("/") == 3


EVENTS = b"""\
: a heartbeat

event: batch
data: {"id": "7", "ended": false}

event: progress
data: {"job": "7-0",
data: "step": 1}

event: end
data: {"id": "7", "ended": true}

"""


def test_an_event_stream_is_opened_again_until_its_end(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.client.batch._PAUSE", 0.0)
    batch = {**BATCH, "links": {"events": "/events"}}
    broken = EVENTS[: EVENTS.index(b"event: end")]
    stream = "text/event-stream"
    script.answers = [
        ok(batch),
        (200, stream, broken),
        None,
        problem(503, "Unavailable"),
        (200, stream, EVENTS),
    ]
    found = Farm(script.url).submit()
    names = [name for name, _ in found.events()]
    assert names == ["batch", "progress", "batch", "progress", "end"]
    assert found.ended


def test_who_may_open_no_event_stream_looks_at_the_batch_instead(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.client.batch._PAUSE", 0.0)
    monkeypatch.setattr("farm.client.batch._SELDOM", 0.0)
    batch = {**BATCH, "links": {"events": "/events", "self": "/self"}}
    full = problem(429, "Too many streams")
    script.answers = [ok(batch), full, ok(batch), full, ok({**batch, "ended": True})]
    found = Farm(script.url).submit()
    assert [name for name, _ in found.events()] == ["batch", "batch", "end"]


def test_a_lost_farm_is_given_up_in_the_end(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.client.batch._PAUSE", 0.0)
    monkeypatch.setattr("farm.client.batch.PATIENCE", 0.0)
    script.answers = [ok({**BATCH, "links": {"events": "/events"}}), None]
    with pytest.raises(Unavailable):
        Farm(script.url).submit().wait()

"""Batches of explicit jobs, one a line, over HTTP and on the command line."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from farm.api.deps import UPLOADS, Services
from farm.api.upload import Upload
from farm.cli.main import app
from farm.client import Farm
from farm.db import leases, users
from farm.db.leases import Claim
from farm.errors import InvalidInput
from tests.conftest import eventually
from tests.standin import StandIn

Json = dict[str, Any]
HEADERS = {"content-type": "application/x-ndjson; charset=utf-8"}


def text(*lines: Any) -> bytes:
    return b"".join((json.dumps(line) if line != "" else "").encode() + b"\n" for line in lines)


def send(api: TestClient, body: bytes | Iterator[bytes], **headers: str) -> Any:
    return api.post("/v1/batches", content=body, headers={**HEADERS, **headers})


def nothing(services: Services) -> bool:
    """Whether nobody can see a batch, and no worker could be given a job of one."""
    found = services.db.all("SELECT state FROM batches WHERE state <> 'pruned'")
    return not found


def test_lines_become_the_jobs_of_a_batch(api: TestClient, worker: StandIn) -> None:
    shared = {"batch": {"name": "mine", "priority": "interactive", "steps": 7, "seed": 5}}
    shared["batch"]["output"] = "webp 70"
    body = text(shared, {"prompt": "a lion"}, "", {"prompt": "a tiger", "steps": 9}, {"seed": 6})
    answer = send(api, body)
    batch = answer.json()
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == batch["links"]["self"]
    assert (batch["total"], batch["name"], batch["priority"], batch["spec"]) == (
        3,
        "mine",
        90,
        None,
    )
    jobs = api.get(batch["links"]["jobs"]).json()["jobs"]
    told = [(job["spec"]["prompt"], job["spec"]["steps"], job["spec"]["seed"]) for job in jobs]
    assert told == [("a lion", 7, 5), ("a tiger", 9, 5), ("", 7, 6)]
    assert jobs[0]["spec"]["width"] == 128, "the checkpoint's own"
    worker.render(int(batch["id"]))
    assert api.get(batch["links"]["self"]).json()["counts"]["succeeded"] == 3
    assert batch["output"] == {"format": "webp", "lossless": False, "quality": 70}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_however_it_is_cut_into_pieces(
    api: TestClient, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("farm.api.routes.streams._CHUNK", 64)
    body = text(*({"prompt": f"né {number} 猫", "seed": number} for number in range(40)))[:-1]
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    batch = send(api, pieces).json()
    jobs = api.get(batch["links"]["jobs"]).json()["jobs"]
    assert [job["spec"]["prompt"] for job in jobs] == [f"né {number} 猫" for number in range(40)]


GOOD = {"prompt": "a lion"}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"),
        (b"\n\n", "body"),
        (text({"batch": {}}), "body"),
        (text(GOOD, {"steps": 0}), "line 2.steps"),
        (text(GOOD, "", {"stepz": 1}), "line 3.stepz"),
        (text(GOOD, {"count": 2}), "line 2.count"),
        (text(GOOD, {"denoising_strength": 0.4}, GOOD), "line 2.denoising_strength"),
        (text(GOOD, {"checkpoint": "nowhere"}), "line 2.checkpoint"),
        (text(GOOD, {"checkpoint": ["demo"]}), "line 2.checkpoint"),
        (text(GOOD, {"prompt": "a\0b"}), "line 2.prompt"),
        (text(GOOD, {"prompt": "\ud800"}), "line 2.prompt"),
        (text(GOOD) + b'{"prompt": ', "line 2"),
        (text(GOOD) + b"\xff\xfe\n", "line 2"),
        (text(GOOD) + b'{"cfg_scale": NaN}', "line 2"),
        (text(GOOD) + b"[" * 100_000, "line 2"),
        (text(GOOD) + b'{"seed": ' + b"9" * 5000 + b"}", "line 2"),
        (text(GOOD, [1]), "line 2"),
        (text(GOOD, 5), "line 2"),
        (text(GOOD, {"prompt": "x" * 400_000}), "line 2"),
        (text(GOOD, {"batch": {}}), "line 2.batch"),
        (text({"batch": {"steps": 0}}, GOOD), "line 2.steps"),
        (text({"batch": {"axes": {"steps": [1]}}}, GOOD), "line 1.batch.axes"),
        (text({"batch": {"count": 3}}, GOOD), "line 1.batch.count"),
        (text({"batch": 5}, GOOD), "line 1.batch"),
        (text({"batch": {"priority": 101}}, GOOD), "line 1.batch.priority"),
        (text({"batch": {}, "prompt": "x"}, GOOD), "line 1.prompt"),
        (text({"batch": {}, "line": 7}, GOOD), "line 1.line"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_left(
    api: TestClient, services: Services, body: bytes, field: str
) -> None:
    answer = send(api, body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.json()["field"], "remedy" in answer.json()) == (field, True)
    assert len(answer.content) < 2000
    assert nothing(services)
    assert api.get("/v1/batches").json()["batches"] == []


def test_a_line_that_never_ends_is_not_held(api: TestClient, services: Services) -> None:
    answer = send(api, (b"x" * (1 << 20) for _ in range(8)))
    assert answer.json()["field"] == "line 1"
    assert nothing(services)


def test_nobody_sees_it_before_it_is_whole(
    served: str, services: Services, worker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.api.routes.streams._CHUNK", 1)
    seen: list[Any] = []

    def lines() -> Iterator[bytes]:
        for number in range(3):
            yield text({"seed": number})
        stored = "SELECT batch_id FROM inputs"
        eventually(lambda: services.db.one(stored))
        row = services.db.one(stored)
        assert row
        id = row["batch_id"]
        seen.append(httpx.get(f"{served}/v1/batches/{id}").status_code)
        seen.append(httpx.get(f"{served}/v1/jobs/{id}-0").status_code)
        seen.append(leases.claim(services.db, [Claim(id, worker.session, count=1)]))
        seen.append(httpx.get(f"{served}/v1/batches").json()["batches"])
        yield text({"seed": 3})

    batch = httpx.post(f"{served}/v1/batches", content=lines(), headers=HEADERS).json()
    assert batch["total"] == 4
    assert seen == [404, 404, [], []]


def test_a_connection_that_is_cut_leaves_nothing(served: str, services: Services) -> None:
    address = urlsplit(served)
    head = (
        b"POST /v1/batches HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
        b"Content-Type: application/x-ndjson\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head + text(*({"seed": number} for number in range(100_000))))
        loading = "SELECT 1 FROM inputs LIMIT 1"
        eventually(lambda: services.db.one(loading))
    eventually(lambda: nothing(services), within=20)
    assert Farm(served).submit(prompt="the next one").id


def test_a_repeated_upload_makes_one_batch(api: TestClient, services: Services) -> None:
    body = text({"prompt": "a lion", "seed": -1}, {"prompt": "a tiger"})
    key = {"Idempotency-Key": "k1"}
    first, again = send(api, body, **key), send(api, body, **key)
    assert (first.status_code, again.status_code) == (202, 200)
    assert {**again.json(), "notices": first.json()["notices"]} == first.json()
    other = send(api, body + text({"prompt": "a cat"}), **key)
    assert (other.status_code, other.json()["field"]) == (409, "Idempotency-Key")
    same = api.post("/v1/batches", json={"prompt": "a lion"}, headers=key)
    assert same.status_code == 409
    assert len(api.get("/v1/batches").json()["batches"]) == 1
    assert len(services.db.all("SELECT FROM inputs")) == 2


def test_of_two_at_once_one_counts(
    served: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.api.routes.streams._CHUNK", 1)
    headers = {**HEADERS, "Idempotency-Key": "k1"}
    first, second, answers = text({"seed": 1}), text({"seed": 2}), []

    def slow() -> Iterator[bytes]:
        yield first
        eventually(lambda: services.db.one("SELECT 1 FROM inputs"), within=20)
        answers.append(httpx.post(f"{served}/v1/batches", content=first + second, headers=headers))
        yield second

    late = httpx.post(f"{served}/v1/batches", content=slow(), headers=headers)
    assert (answers[0].status_code, late.status_code) == (202, 200)
    assert late.json()["id"] == answers[0].json()["id"]
    assert len(httpx.get(f"{served}/v1/batches").json()["batches"]) == 1


def test_an_upload_that_was_given_up_is_refused(
    served: str, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.api.routes.streams._CHUNK", 1)

    def lines() -> Iterator[bytes]:
        yield text({"seed": 1})
        eventually(lambda: services.db.one("SELECT 1 FROM inputs"), within=20)
        services.db.all("UPDATE batches SET state = 'pruned' RETURNING id")
        yield text({"seed": 2})

    answer = httpx.post(f"{served}/v1/batches", content=lines(), headers=HEADERS)
    assert (answer.status_code, answer.json()["title"]) == (503, "Unavailable")


def test_who_may_have_nothing_in_flight_is_told(api: TestClient, services: Services) -> None:
    users.local(services.db)
    users.set_share(services.db, "local", weight=None, cap=0)
    for answer in (send(api, text(GOOD)), api.post("/v1/batches", json=GOOD)):
        assert (answer.status_code, answer.json()["field"]) == (403, "user")
        assert "farm share local --cap" in answer.json()["remedy"]
    assert services.db.all("SELECT FROM batches") == []


def farm(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == code, result.output
    return result


def written(folder: Path, lines: Iterable[Any]) -> str:
    path = folder / "jobs.ndjson"
    path.write_bytes(text(*lines))
    return str(path)


def test_the_command_line(
    served: str, services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", served)
    path = written(tmp_path, [{"batch": {"name": "theirs", "steps": 8}}, GOOD, {"steps": 9}])
    assert "2 jobs. Nothing" in farm("submit", path, "--dry-run").stdout
    told = json.loads(farm("submit", path, "--name", "mine", "--json").stdout)
    assert (told["total"], told["name"]) == (2, "mine")
    steps = [job.spec["steps"] for job in Farm(served).batch(told["id"]).jobs()]
    assert steps == [8, 9]

    path = written(tmp_path, [GOOD, {"steps": 0}])
    assert "line 2.steps" in farm("submit", path, "--name", "mine", code=2).output
    assert "line 2.steps" in farm("submit", path, "--dry-run", code=2).output
    assert "line 2" in farm("submit", written(tmp_path, [GOOD, 5]), "-s", "9", code=2).output
    assert "count" in farm("submit", written(tmp_path, [GOOD]), "-n", "2", code=2).output
    assert "cannot be read" in farm("submit", str(tmp_path / "none.ndjson"), code=2).output


def test_the_answer_to_a_wrong_line_is_heard_in_the_middle_of_a_long_upload(
    served: str, services: Services
) -> None:
    def lines() -> Iterator[bytes]:
        yield text({"steps": 0})
        yield from (text({"seed": number, "prompt": "x" * 500}) for number in range(40_000))

    with pytest.raises(InvalidInput) as raised:
        Farm(served).submit_lines(lines)
    assert raised.value.field == "line 1.steps"
    assert nothing(services)


def test_uploads_leave_threads_for_all_else(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, release, active, most, add = threading.Lock(), threading.Event(), [0], [0], Upload.add

    def slowly(self: Upload, lines: Iterable[bytes]) -> None:
        with lock:
            active[0] += 1
            most[0] = max(most[0], active[0])
        release.wait(30)
        with lock:
            active[0] -= 1
        add(self, lines)

    def upload(_: int) -> int:
        body, url = text({"prompt": "a lion"}), f"{served}/v1/batches"
        return httpx.post(url, content=body, headers=HEADERS, timeout=60).status_code

    monkeypatch.setattr(Upload, "add", slowly)
    with ThreadPoolExecutor(2 * UPLOADS) as pool:
        answers = pool.map(upload, range(2 * UPLOADS))
        eventually(lambda: active[0] == UPLOADS, within=20)
        for _ in range(5):
            assert httpx.get(f"{served}/v1/batches").status_code == 200
        release.set()
        assert set(answers) == {202}
    assert most[0] == UPLOADS

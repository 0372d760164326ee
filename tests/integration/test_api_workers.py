"""/v1/workers: draining, and timelines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from farm.api.deps import Services
from farm.cli.main import app
from farm.db import orders, sessions
from farm.db.sessions import NewSession
from farm.storage import trace_path
from tests.standin import StandIn

TRACE = {
    "traceEvents": [
        {"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "cpu0"}},
        {"name": "denoise", "ph": "X", "pid": 1, "tid": 1, "ts": 0.0, "dur": 1e6, "args": {}},
        {"name": "decode", "ph": "X", "pid": 1, "tid": 1, "ts": 9e6, "dur": 1e6, "args": {}},
    ]
}


def states(api: TestClient) -> list[str]:
    return [worker["state"] for worker in api.get("/v1/workers").json()["workers"]]


def test_a_worker_is_drained_and_resumed(api: TestClient, worker: StandIn) -> None:
    for _ in range(2):
        assert api.post("/v1/workers/cpu0:drain").status_code == 200
        assert states(api) == ["draining"]
    assert api.post("/v1/workers/cpu0:resume").json()["workers"][0]["state"] == "live"


def test_a_worker_that_drains_can_be_quarantined(api: TestClient, worker: StandIn) -> None:
    """It goes on draining; the quarantine is there when it has started anew."""
    api.post("/v1/workers/cpu0:drain")
    answer = api.post("/v1/workers/cpu0:quarantine", json={"reason": "fan is broken"})
    assert answer.status_code == 200, answer.text
    [told] = answer.json()["workers"]
    assert (told["state"], told["quarantine"]["reason"]) == ("draining", "fan is broken")


@pytest.mark.parametrize("what", ["drain", "resume", "tag", "trace"])
def test_a_worker_that_is_not_there(api: TestClient, what: str) -> None:
    answer = api.post(f"/v1/workers/gpu9:{what}", json={} if what == "tag" else None)
    assert (answer.status_code, answer.json()["field"]) == (404, "worker")


@pytest.mark.parametrize("id", ["0" * 32, "..%2F..%2Fetc", "x"])
def test_a_trace_that_is_not_there(api: TestClient, id: str) -> None:
    assert api.get(f"/v1/traces/{id}").status_code == 404


def test_a_timeline_is_asked_for_and_fetched(
    api: TestClient, services: Services, worker: StandIn
) -> None:
    asked = api.post("/v1/workers/cpu0:trace").json()
    assert api.get(asked["url"]).status_code == 404
    assert orders.take(services.db, worker.session) == [("trace", asked["id"])]
    services.images.put(trace_path(asked["id"]), json.dumps(TRACE).encode())
    assert api.get(asked["url"]).json() == TRACE


def farm(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["workers", *words])
    assert result.exit_code == code, result.output
    return result


def test_the_command_line(
    served: str,
    services: Services,
    worker: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FARM_URL", served)
    assert "cpu0 gets no more jobs" in farm("drain", "cpu0").stdout
    assert "draining" in farm().stdout
    assert "cpu0 takes jobs" in farm("resume", "cpu0").stdout
    assert farm("tag", "cpu0", "+red", "+x", "-y").stdout == "cpu0 has the tags red, x.\n"
    assert farm("tag", "cpu0", "-red", "-x").stdout == "cpu0 has no tags.\n"
    elsewhere = NewSession("s-2", "cpu0", "other", 1, {}, "cpu", 1)
    sessions.open(services.db, elsewhere, lease=60)
    told = farm("tag", "cpu0", "+red").stdout.splitlines()
    assert "cpu0 on other has the tags red." in told
    assert len(told) == 2
    assert "Write +red or -red." in farm("tag", "cpu0", "red", code=2).output
    assert "no live worker gpu9" in farm("trace", "gpu9", code=3).output

    monkeypatch.setattr("farm.api.routes.reports.uuid.uuid4", lambda: _Id)
    services.images.put(trace_path(_Id.hex), json.dumps(TRACE).encode())
    target = tmp_path / "trace.json"
    farm("trace", "cpu0", "--seconds", "2", "-o", str(target))
    names = [event["name"] for event in json.loads(target.read_text())["traceEvents"]]
    assert names == ["process_name", "decode"]


class _Id:
    hex = "ab" * 16


def test_a_worker_gets_tags_and_loses_them(api: TestClient, worker: StandIn) -> None:
    answer = api.post("/v1/workers/cpu0:tag", json={"add": ["red", "a100"]})
    assert answer.json()["workers"][0]["tags"] == ["a100", "red"]
    answer = api.post("/v1/workers/cpu0:tag", json={"add": ["blue"], "remove": ["red", "none"]})
    assert answer.json()["workers"][0]["tags"] == ["a100", "blue"]


@pytest.mark.parametrize("tags", [{"add": ["Red Hot"]}, {"add": ["x"] * 17}, {"set": []}])
def test_tags_that_are_none(api: TestClient, worker: StandIn, tags: dict[str, object]) -> None:
    assert api.post("/v1/workers/cpu0:tag", json=tags).status_code == 422

"""What workers are asked to measure or show."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from farm.api.deps import Services
from farm.cli.main import app
from farm.db import orders
from farm.storage import report_path, snapshot_path
from farm.worker.accountant import Accountant
from farm.worker.memory.snapshot import Snapshots
from farm.worker.orders import Orders
from tests.conftest import eventually
from tests.standin import StandIn

CALL = {
    "call": {"work": "denoise", "mode": "sdpa", "rows": 8},
    "width": 512,
    "height": 768,
    "predicted": 3 * 2**30,
    "bytes": None,
    "seconds": 0.25,
}


@pytest.mark.parametrize("what", ["calibrate", "memory"])
def test_a_worker_that_is_not_there(api: TestClient, what: str) -> None:
    answer = api.post(f"/v1/workers/gpu9:{what}")
    assert (answer.status_code, answer.json()["field"]) == (404, "worker")


@pytest.mark.parametrize(
    ("what", "body", "field"),
    [
        ("calibrate", {"sizes": [[512, 511]]}, "sizes.0.1"),
        ("calibrate", {"sizes": [[512, 512]] * 9}, "sizes"),
        ("calibrate", {"size": [[512, 512]]}, "size"),
        ("memory", {"seconds": 61}, "seconds"),
    ],
)
def test_bad_input_is_named(
    api: TestClient, worker: StandIn, what: str, body: dict[str, Any], field: str
) -> None:
    answer = api.post(f"/v1/workers/cpu0:{what}", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


@pytest.mark.parametrize("id", ["0" * 32, "..%2F..%2Fetc", "x"])
def test_a_report_that_is_not_there(api: TestClient, id: str) -> None:
    assert api.get(f"/v1/reports/{id}").status_code == 404
    assert api.get(f"/v1/reports/{id}/file").status_code == 404


class Answers:
    """The worker's side: carries out what is ordered, as soon as it is."""

    def __init__(self, services: Services, worker: StandIn, engine: Any, models: Any) -> None:
        self.orders = Orders(
            models,
            engine,
            services.images,
            worker="cpu0",
            accountant=Accountant(),
            snapshots=Snapshots(torch.device("cpu")),
            answer=lambda _: None,
        )
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(services, worker))

    def run(self, services: Services, worker: StandIn) -> None:
        while not self.done.wait(0.02):
            for action, subject in orders.take(services.db, worker.session):
                self.orders.obey(action, subject)

    def __enter__(self) -> Answers:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.orders.stop()


class Engine:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    def calibrate(self, checkpoint: str, sizes: Any) -> list[Any]:
        self.asked.append((checkpoint, sizes))
        return []


class Models:
    def __init__(self, *resident: str) -> None:
        self.resident = resident
        self.warmed: list[str] = []

    def warm(self, name: str) -> None:
        self.warmed.append(name)

    def evict(self, name: str) -> None:
        """Never asked for here."""


def farm(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["workers", *words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def at_the_prompt(served: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FARM_URL", served)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_worker_is_calibrated(at_the_prompt: Path, services: Services, worker: StandIn) -> None:
    engine, models = Engine(), Models("old", "used-last")
    with Answers(services, worker, engine, models):
        farm("calibrate", "cpu0", "--size", "512x768", "--size", "64x64")
        farm("calibrate", "cpu0", "--checkpoint", "other")
    assert engine.asked == [("used-last", [(512, 768), (64, 64)]), ("other", [])]
    assert models.warmed == ["used-last", "other"]


def test_why_it_could_not_be_is_told(
    at_the_prompt: Path, services: Services, worker: StandIn
) -> None:
    with Answers(services, worker, Engine(), Models()):
        assert "cpu0 holds no checkpoint" in farm("calibrate", "cpu0", code=1).output
        shown = farm("memory", "cpu0", code=1).output
    assert "runs on the CPU" in shown
    assert "holds a GPU" in shown


def test_the_table_and_the_file(
    at_the_prompt: Path, api: TestClient, services: Services, worker: StandIn
) -> None:
    def answer(content: dict[str, Any]) -> threading.Thread:
        def run() -> None:
            found: list[tuple[str, str]] = []
            eventually(lambda: found.extend(orders.take(services.db, worker.session)) or found)
            id, _, _ = found[0][1].partition(" ")
            services.images.put(snapshot_path(id), b"pickled")
            services.images.put(report_path(id), json.dumps(content).encode())

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    thread = answer({"checkpoint": "demo", "calls": [CALL, {**CALL, "seconds": None}]})
    shown = farm("calibrate", "cpu0").output
    thread.join()
    for part in ("denoise, sdpa", "512x768", "3.00 GB", "0.2500", "32.00", "out of memory"):
        assert part in shown
    assert "on a CPU it cannot be told" in shown
    thread = answer({"path": "memory/1.pickle", "bytes": 7, "recorded": {"anime/v3": 3 * 2**30}})
    shown = farm("memory", "cpu0", "--seconds", "0.5").output
    assert "memory_viz" in shown
    assert "Recorded forwards of anime/v3 hold 3.00 GB." in shown
    thread.join()
    assert (at_the_prompt / "cpu0-memory.pickle").read_bytes() == b"pickled"


@pytest.mark.parametrize("size", ["512", "512x", "x512", "ax512"])
def test_a_size_that_is_none(at_the_prompt: Path, worker: StandIn, size: str) -> None:
    assert "is no size" in farm("calibrate", "cpu0", "--size", size, code=2).output

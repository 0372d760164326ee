"""From memory that runs out in a worker to the file that its owner downloads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from typer.testing import CliRunner

from farm.api.deps import Services
from farm.cli.main import app
from farm.db.leases import Lease
from farm.worker.accountant import Accountant
from farm.worker.attempt import Attempts
from farm.worker.engine import Engine
from farm.worker.evidence import Evidence
from farm.worker.keeper import Keeper
from farm.worker.memory.snapshot import Snapshots
from farm.worker.starter import Starter
from farm.worker.writer import Writer
from tests.fake_models import FakeCheckpoint, FakeModels, profile
from tests.standin import StandIn

JOB = {"prompt": "a cat", "seed": 1, "checkpoint": "demo", "width": 64, "height": 64, "steps": 2}


class Card:
    """A worker's device whose memory runs out: torch's own part, and whom its allocator tells."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.told: list[Any] = []
        attach = "_cuda_attach_out_of_memory_observer"
        patch.setattr(torch._C, attach, self.told.append, raising=False)
        patch.setattr(torch.cuda.memory, "_dump_snapshot", self.dump)
        self.snapshots = Snapshots(torch.device("cuda"))
        self.checkpoint = FakeCheckpoint("demo")
        self.checkpoint.paints = True
        self.checkpoint.fault = self.short
        self.left = 0

    def dump(self, path: str) -> None:
        Path(path).write_bytes(b"what lay where")

    def short(self, what: str, _: object) -> None:
        if what == "predict" and self.left:
            self.left -= 1
            for observer in self.told:
                observer(0, 100, 1000, 10)
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


@pytest.fixture
def attempts(card: Card, services: Services, worker: StandIn) -> Iterator[Attempts]:
    """A worker's, on the real engine, database and store."""
    models: Any = FakeModels(card.checkpoint)
    starter = Starter(services.db, worker.session)
    writer = Writer(services.db, worker.session, worker.name)
    with Engine(models, profile(4), torch.device("cpu")) as engine:
        yield Attempts(
            services.db,
            engine,
            profile="cpu",
            keeper=Keeper(services.images),
            starter=starter,
            writer=writer,
            hashes=lambda *_: None,
            accountant=Accountant(),
            evidence=Evidence(card.snapshots, services.images).since,
        )
    starter.stop()
    writer.stop()


def run(api: TestClient, attempts: Attempts, worker: StandIn) -> str:
    """One job of a new batch, as a worker does it; its id."""
    batch = int(api.post("/v1/batches", json=JOB).json()["id"])
    held: list[Lease] = worker.claim(batch, 1, start=False)
    attempts.run(*held[0][:3])
    return f"{batch}-0"


@pytest.mark.parametrize(("times", "state"), [(1, "succeeded"), (10**6, "failed")])
def test_its_owner_finds_and_downloads_it(
    api: TestClient,
    served: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    card: Card,
    attempts: Attempts,
    worker: StandIn,
    times: int,
    state: str,
) -> None:
    card.left = times
    id = run(api, attempts, worker)
    job = api.get(f"/v1/jobs/{id}").json()
    assert job["state"] == state
    (attempt,) = job["attempts"]
    assert attempt["stats"]["memory_snapshot"] == f"memory/{id}.1.pickle"
    answer = api.get(f"/v1/jobs/{id}/attempts/1/memory")
    assert (answer.status_code, answer.content) == (200, b"what lay where")
    monkeypatch.setenv("FARM_URL", served)
    shown = CliRunner().invoke(app, ["show", id])
    assert f"/v1/jobs/{id}/attempts/1/memory" in shown.output.replace("\n", "")


def test_where_none_ran_out_there_is_none(
    api: TestClient, attempts: Attempts, worker: StandIn
) -> None:
    id = run(api, attempts, worker)
    for path in (f"/v1/jobs/{id}/attempts/1/memory", f"/v1/jobs/{id}/attempts/2/memory"):
        answer = api.get(path)
        assert (answer.status_code, answer.json()["field"]) == (404, "attempt")
        assert id in answer.json()["remedy"]
    assert api.get("/v1/jobs/99999-0/attempts/1/memory").status_code == 404

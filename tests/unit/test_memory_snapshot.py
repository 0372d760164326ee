"""Snapshots of a card's memory, on demand and when it ran out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from farm.db.leases import Ending, Started
from farm.errors import Conflict
from farm.storage import ImageStore
from farm.worker.accountant import Accountant
from farm.worker.attempt import Attempts
from farm.worker.evidence import Evidence
from farm.worker.memory.snapshot import PAUSE, Snapshot, Snapshots

CPU = torch.device("cpu")


class Card:
    """Stands in for torch's part: what it was told, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[object] = []
        self.now = 0.0
        memory = torch.cuda.memory
        monkeypatch.setattr(memory, "_dump_snapshot", self.dump)
        monkeypatch.setattr(memory, "_record_memory_history", self.record)
        monkeypatch.setattr(
            torch._C, "_cuda_attach_out_of_memory_observer", self.told.append, raising=False
        )
        self.snapshots = Snapshots(torch.device("cuda"), clock=lambda: self.now)

    def dump(self, path: str) -> None:
        self.told.append("dump")
        Path(path).write_bytes(f"snapshot at {self.now}".encode())

    def record(self, enabled: str | None = "all", **_: object) -> None:
        self.told.append(("record", enabled))


def test_on_demand_it_is_what_torch_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    assert card.snapshots.take() == b"snapshot at 0.0"
    assert card.told[1:] == ["dump"]


def test_what_is_allocated_may_be_recorded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    card.snapshots.take(seconds=0.001)
    assert card.told[1:] == [("record", "all"), "dump", ("record", None)]


def test_when_memory_runs_out_one_is_made_but_not_every_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch)
    assert card.told == [card.snapshots.ran_out]
    made = []
    for card.now in (5.0, 6.0, 5.0 + PAUSE):
        card.snapshots.ran_out(0, 100, 1000, 10)
        assert card.snapshots.exhausted
        made.append(card.snapshots.exhausted.content)
    assert made == [b"snapshot at 5.0", b"snapshot at 5.0", b"snapshot at 65.0"]


def test_a_snapshot_that_fails_is_not_the_error_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Card(monkeypatch)

    def full(_: str) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", full)
    card.snapshots.ran_out(0, 100, 1000, 10)
    assert card.snapshots.exhausted is None


def test_a_cpu_says_that_it_has_none() -> None:
    with pytest.raises(Conflict, match="runs on the CPU") as caught:
        Snapshots(CPU).take()
    assert "GPU" in str(caught.value.remedy)


def test_it_is_kept_once_for_all_who_were_there(tmp_path: Path) -> None:
    snapshots, store = Snapshots(CPU), ImageStore(str(tmp_path))
    evidence = Evidence(snapshots, store)
    assert evidence.since(0.0, "1-1.1") is None
    snapshots.exhausted = Snapshot(at=10.0, content=b"first")
    assert evidence.since(11.0, "1-2.1") is None  # began after it
    assert evidence.since(9.0, "1-3.1") == "memory/1-3.1.pickle"
    assert evidence.since(8.0, "1-4.1") == "memory/1-3.1.pickle"
    assert list(store.paths("memory")) == ["memory/1-3.1.pickle"]
    snapshots.exhausted = Snapshot(at=20.0, content=b"second")
    assert evidence.since(8.0, "1-5.1") == "memory/1-5.1.pickle"
    assert store.get("memory/1-5.1.pickle") == b"second"


def test_a_store_that_is_out_of_reach_costs_the_snapshot_alone(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file where a folder must be")
    snapshots = Snapshots(CPU)
    snapshots.exhausted = Snapshot(at=1.0, content=b"lost")
    assert Evidence(snapshots, ImageStore(str(tmp_path))).since(0.0, "1-1.1") is None


def test_the_attempt_that_was_there_names_it_in_its_statistics() -> None:
    told: list[Ending] = []
    started = Started(0, 0, True, 0.0, 0.0, 50)
    parts: dict[str, Any] = {
        "keeper": None,
        "starter": SimpleNamespace(start=lambda *_, again: started),
        "writer": SimpleNamespace(end=told.append),
        "hashes": lambda *_: None,
        "accountant": Accountant(),
        "evidence": lambda _, attempt: f"memory/{attempt}.pickle",
    }
    nothing: Any = None
    Attempts(nothing, nothing, profile="cpu", **parts).run(1, 2, 3)
    assert [ending.stats for ending in told] == [{"memory_snapshot": "memory/1-2.3.pickle"}]

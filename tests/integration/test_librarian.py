"""The librarian: new files are seen, hashes come aside, nothing waits for them."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from farm.db import assets
from farm.db.database import Database
from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.librarian import Librarian
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.library import Library
from tests.checkpoints import tiny_file
from tests.conftest import eventually
from tests.small_files import small_file


class Loading:
    """Whether a checkpoint is being read; the first question is waited for."""

    def __init__(self) -> None:
        self.now = False
        self.asked = threading.Event()

    def __call__(self) -> bool:
        self.asked.set()
        return self.now


@pytest.fixture
def loading() -> Loading:
    return Loading()


@pytest.fixture
def librarian(db: Database, tmp_path: Path, loading: Loading) -> Iterator[Librarian]:
    small_file(tmp_path / "Lora" / "first.safetensors")
    librarian = Librarian(
        db,
        Library([tmp_path]),
        host="h",
        loading=loading,
        scanned=lambda: None,
        every=0.05,
    )
    yield librarian
    librarian.stop()


def test_everything_is_registered_before_it_is_hashed(db: Database, librarian: Librarian) -> None:
    [known] = assets.listing(db)
    assert (known.kind, known.name, known.sha256) == ("lora", "first", None)
    assert librarian.sha256("lora", "first") is None


def test_what_no_database_takes_is_spelt_otherwise(
    db: Database, tmp_path: Path, loading: Loading
) -> None:
    """A file of any name and with anything in it must not keep a worker from its work."""
    odd = {"odd\0key\ud800": "a\0b", "plain": "yes"}
    folder = tmp_path / "Lora"
    small_file(folder / "good.safetensors", **odd)
    for name in (b"caf\xe9.safetensors", b"caf\xe8.safetensors"):
        small_file(Path(os.fsdecode(os.fsencode(folder) + b"/" + name)))
    strange = {"w\0": {"dtype": "F\0\ud800", "shape": [1], "data_offsets": [0, 1]}}
    index = json.dumps(strange).encode()
    (folder / "odd.safetensors").write_bytes(len(index).to_bytes(8, "little") + index + b"1")
    librarian = Librarian(
        db, Library([tmp_path]), host="h", loading=loading, scanned=lambda: None, every=0.05
    )
    librarian.start()
    eventually(lambda: librarian.sha256("lora", "good"))
    librarian.stop()
    found = {known.name: known for known in assets.listing(db)}
    assert found.keys() == {"good", "odd", "caf\ufffd"}
    assert found["good"].metadata == {"odd\ufffdkey\ufffd": "a\ufffdb", "plain": "yes"}
    assert "stores 'w\\x00' as F\ufffd\ufffd" in str(found["odd"].error)
    assert "Rename it" in str(found["caf\ufffd"].error)
    assert len(assets.files(db, "lora", "caf\ufffd")) == 2


def test_hashes_are_those_of_the_file_and_of_its_weights(
    db: Database, librarian: Librarian, tmp_path: Path
) -> None:
    librarian.start()
    eventually(lambda: librarian.sha256("lora", "first"))
    data = (tmp_path / "Lora" / "first.safetensors").read_bytes()
    weights = data[8 + int.from_bytes(data[:8], "little") :]
    [known] = assets.listing(db)
    assert known.sha256 == hashlib.sha256(data).hexdigest()
    assert known.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert librarian.sha256("lora", "first") == known.weights_sha256


def test_nothing_is_hashed_while_a_checkpoint_is_read(
    librarian: Librarian, loading: Loading
) -> None:
    loading.now = True
    librarian.start()
    assert loading.asked.wait(30)
    assert librarian.sha256("lora", "first") is None
    loading.now = False
    eventually(lambda: librarian.sha256("lora", "first"))


def test_it_ends_in_the_middle_of_a_hash(librarian: Librarian, loading: Loading) -> None:
    loading.now = True
    librarian.start()
    assert loading.asked.wait(30)
    librarian.stop()
    assert not librarian._thread.is_alive()


def test_files_that_come_and_go_are_noticed(
    db: Database, librarian: Librarian, tmp_path: Path
) -> None:
    librarian.start()
    small_file(tmp_path / "VAE" / "soft.safetensors")
    eventually(lambda: assets.get(db, "vae", "soft"))
    (tmp_path / "Lora" / "first.safetensors").unlink()
    eventually(lambda: assets.get(db, "lora", "first") is None)


def test_every_scan_is_told_though_nothing_changed(db: Database, tmp_path: Path) -> None:
    scans: list[int] = []
    librarian = Librarian(
        db,
        Library([tmp_path]),
        host="h",
        loading=lambda: False,
        scanned=lambda: scans.append(1),
        every=0.01,
    )
    librarian.start()
    eventually(lambda: len(scans) > 2)
    librarian.stop()


def test_no_image_waits_for_a_hash(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashing, go_on = threading.Event(), threading.Event()
    sha256 = hashlib.sha256

    def held_up(*args: Any, **options: Any) -> Any:
        hashing.set()
        assert go_on.wait(120)
        return sha256(*args, **options)

    tiny = tiny_file(tmp_path / "Stable-diffusion", "sd15")
    library = Library([tmp_path])
    librarian = Librarian(
        db, library, host="h", loading=lambda: False, scanned=lambda: None, every=0.05
    )
    profile, cpu = by_name("cpu"), torch.device("cpu")
    monkeypatch.setattr(hashlib, "sha256", held_up)
    librarian.start()
    assert hashing.wait(30)
    spec = JobSpec(
        prompt="", checkpoint=tiny.name, width=64, height=64, steps=1, cfg_scale=1, seed=1
    )
    with Engine(ModelCache(library, profile, cpu), profile, cpu, assets=library) as engine:
        made = engine.submit("first", spec).result(timeout=60)
    assert made.image.shape == (64, 64, 3)
    assert librarian.sha256("checkpoint", tiny.name) is None
    go_on.set()
    eventually(lambda: librarian.sha256("checkpoint", tiny.name))
    librarian.stop()

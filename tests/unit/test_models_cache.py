"""The model cache: budget, pins, failures, threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from farm.errors import CheckpointError, DoesNotFit
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile


@dataclass
class Disk:
    """Stands in for the loader: sizes by name, what breaks, and what was loaded."""

    sizes: dict[str, int]
    broken_index: set[str] = field(default_factory=set)
    broken_weights: set[str] = field(default_factory=set)
    loaded: list[str] = field(default_factory=list)
    gate: Callable[[str], object] = lambda name: None

    def prepare(self, file: AssetFile, *_: object) -> Prepared:
        if file.error:
            raise CheckpointError(file.error)
        if file.name in self.broken_index:
            raise CheckpointError(f"{file.name} is cut short.")
        return Prepared(self, file.name, self.sizes[file.name])


@dataclass
class Prepared:
    disk: Disk
    name: str
    bytes: int

    def load(self) -> Resident:
        self.disk.gate(self.name)
        if self.name in self.disk.broken_weights:
            raise CheckpointError(f"{self.name} was changed while it was loaded.")
        self.disk.loaded.append(self.name)
        return Resident(self.name, self.bytes)


@dataclass
class Resident:
    name: str
    bytes: int
    load_seconds: float = 0.5


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk({"a": 4, "b": 4, "c": 4, "large": 9, "huge": 11})
    monkeypatch.setattr("farm.worker.models.cache.prepare", disk.prepare)
    return disk


@pytest.fixture
def cache(disk: Disk) -> ModelCache:
    files = [AssetFile(name, Path(name), "sd15", 512, 1) for name in disk.sizes]
    profile = replace(by_name("cpu"), weights_bytes=10)
    return ModelCache(files, profile, torch.device("cpu"))


def test_a_second_use_is_a_hit(cache: ModelCache, disk: Disk) -> None:
    assert cache.get("a") is cache.get("a")
    assert disk.loaded == ["a"]
    counts = cache.statistics
    assert (counts.hits, counts.loads, counts.evictions, counts.load_seconds) == (1, 1, 0, 0.5)


def test_the_least_recently_used_leaves(cache: ModelCache) -> None:
    for name in ("a", "b", "a", "c"):
        cache.get(name)
    assert cache.resident == ("a", "c")
    assert cache.bytes == 8
    assert cache.statistics.evictions == 1


def test_several_leave_for_a_large_one(cache: ModelCache) -> None:
    for name in ("a", "b", "large"):
        cache.get(name)
    assert cache.resident == ("large",)


def test_what_is_in_use_stays(cache: ModelCache) -> None:
    with cache.use("a") as held:
        assert held.name == "a"
        cache.get("b")
        cache.get("c")
        assert cache.resident == ("a", "c")
        with pytest.raises(DoesNotFit) as caught:
            cache.get("large")
        assert "beside a, in use" in caught.value.message
        assert cache.resident == ("a", "c")
    cache.get("large")
    assert cache.resident == ("large",)


def test_pins_are_counted(cache: ModelCache) -> None:
    cache.pin("a")
    cache.pin("a")
    cache.unpin("a")
    with pytest.raises(DoesNotFit):
        cache.get("large")
    cache.unpin("a")
    cache.get("large")
    with pytest.raises(ValueError, match="not pinned"):
        cache.unpin("a")


def test_a_pin_ends_with_its_block_even_after_an_error(cache: ModelCache) -> None:
    with pytest.raises(RuntimeError), cache.use("a"):
        raise RuntimeError
    cache.get("large")


def test_larger_than_the_budget_changes_nothing(cache: ModelCache) -> None:
    cache.get("a")
    with pytest.raises(DoesNotFit, match="huge needs"):
        cache.get("huge")
    assert cache.resident == ("a",)


def test_a_damaged_file_costs_nobody_their_place(cache: ModelCache, disk: Disk) -> None:
    cache.get("a")
    cache.get("b")
    disk.broken_index.add("large")
    with pytest.raises(CheckpointError, match="cut short"):
        cache.get("large")
    assert cache.resident == ("a", "b")


def test_a_failed_load_is_not_kept_and_can_be_tried_again(cache: ModelCache, disk: Disk) -> None:
    cache.get("a")
    disk.broken_weights.add("b")
    with pytest.raises(CheckpointError, match="changed"):
        cache.pin("b")
    assert cache.resident == ("a",)
    disk.broken_weights.clear()
    assert cache.get("b").name == "b"
    cache.get("large")  # the failed pin left no pin behind


@pytest.mark.parametrize(
    ("name", "says"), [("larg", "Did you mean large"), ("zzzzzz", "Did you mean a, b, c")]
)
def test_an_unknown_name_lists_near_ones(cache: ModelCache, name: str, says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        cache.get(name)
    assert (caught.value.field, caught.value.value) == ("checkpoint", name)
    assert says in str(caught.value.remedy)


def test_a_broken_file_gives_its_reason_and_hides_no_good_one(disk: Disk) -> None:
    good = AssetFile("a", Path("1/a"), "sd15", 512, 1)
    bad = AssetFile("a", Path("2/a"), None, None, 1, "already the name of 1/a")
    worse = AssetFile("b", Path("b"), None, None, 1, "b is empty.")
    for files in ([good, bad, worse], [worse, bad, good]):
        cache = ModelCache(files, by_name("cpu"), torch.device("cpu"))
        assert cache.get("a").name == "a"
        with pytest.raises(CheckpointError, match="b is empty"):
            cache.get("b")


def test_asked_twice_at_once_it_is_loaded_once(cache: ModelCache, disk: Disk) -> None:
    started, go_on = threading.Event(), threading.Event()

    def gate(name: str) -> None:
        started.set()
        assert go_on.wait(30)

    disk.gate = gate
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(cache.pin, "a") for _ in range(4)]
        assert started.wait(30)
        go_on.set()
        held = {id(future.result(30)) for future in waiting}
    assert len(held) == 1
    assert disk.loaded == ["a"]
    for _ in range(4):
        cache.unpin("a")


def test_a_resident_one_is_at_hand_while_another_loads(cache: ModelCache, disk: Disk) -> None:
    cache.get("a")
    started, go_on = threading.Event(), threading.Event()

    def gate(name: str) -> None:
        started.set()
        assert go_on.wait(30)

    disk.gate = gate
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.get, "b")
        assert started.wait(30)
        assert cache.get("a").name == "a"  # would deadlock if it waited for the load
        assert not loading.done()
        go_on.set()
        assert loading.result(30).name == "b"

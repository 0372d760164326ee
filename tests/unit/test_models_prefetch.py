"""Checkpoints are read into host memory ahead of their turn, and in nobody's way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from farm.errors import CheckpointError
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from tests.conftest import eventually
from tests.fake_disk import Disk, make_cache
from tests.fake_models import Gate

TIMEOUT = 30


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk.installed(monkeypatch)


def settled(cache: ModelCache) -> None:
    """Wait until nothing is being read ahead."""
    eventually(lambda: not cache._prefetcher._alive)


def prefetch(cache: ModelCache, *names: str) -> None:
    cache.prefetch(names)
    settled(cache)


def test_what_was_read_ahead_only_moves_to_the_device(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8)
    cache.get("a")
    prefetch(cache, "b")
    assert (cache.resident, cache.in_host) == (("a",), ("b",))
    assert cache.get("b").name == "b"
    assert (disk.loaded, disk.fetched) == (["a"], ["b"])
    counts = cache.statistics
    assert (counts.disk_loads, counts.host_loads, counts.prefetches) == (1, 1, 1)
    assert cache.in_host == ()


def test_parts_in_common_are_found_when_it_comes_to_the_device(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8)
    cache.get("a")
    prefetch(cache, "b")
    cache.get("b")
    assert disk.beside[-1] == 1


@pytest.mark.parametrize(
    ("host_bytes", "names", "read"),
    [
        (8, ["b", "c"], ["b", "c"]),
        (4, ["b", "c"], ["b"]),  # what is wanted first stays
        (8, ["huge", "b"], ["b"]),  # larger than host memory
        (8, ["a", "b"], ["b"]),  # on the device already
        (0, ["b"], []),
        (8, ["unknown", "b"], ["b"]),
    ],
)
def test_as_many_are_read_as_there_is_room_for(
    disk: Disk, host_bytes: int, names: list[str], read: list[str]
) -> None:
    cache = make_cache(disk, host_bytes=host_bytes)
    cache.get("a")
    prefetch(cache, *names)
    assert disk.fetched == read
    assert cache.in_host == tuple(read)
    prefetch(cache, *names)
    assert disk.fetched == read


def test_what_nobody_wants_makes_room_and_what_somebody_wants_does_not(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8)
    prefetch(cache, "a", "b")
    prefetch(cache, "b", "c")
    assert cache.in_host == ("b", "c")
    prefetch(cache)  # all jobs are cancelled: they stay, and are the first to go
    assert cache.in_host == ("b", "c")


def test_what_had_no_room_is_tried_again_when_other_things_are_wanted(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=4)
    prefetch(cache, "b", "c")
    cache.get("b")
    prefetch(cache, "c")
    assert cache.in_host == ("c",)


def test_while_it_is_read_others_have_the_device(disk: Disk) -> None:
    cache, gate = make_cache(disk, host_bytes=8), Gate()
    cache.get("a")
    disk.gate = lambda name: gate() if name == "b" else None
    cache.prefetch(["b"])
    assert gate.reached.wait(TIMEOUT)
    assert cache.loading
    assert cache.get("a").name == "a"
    assert cache.get("c").name == "c"
    gate.open()
    settled(cache)
    assert cache.in_host == ("b",)


def test_who_asks_for_what_is_being_read_joins(disk: Disk) -> None:
    cache, gate = make_cache(disk, host_bytes=8), Gate()
    disk.gate = lambda name: gate()
    cache.prefetch(["b"])
    assert gate.reached.wait(TIMEOUT)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(cache.get, "b") for _ in range(2)]
        eventually(lambda: cache._prefetcher._hurried)
        assert not any(future.done() for future in waiting)
        gate.open()
        first, second = (future.result(TIMEOUT) for future in waiting)
    assert first is second
    assert (disk.loaded, disk.fetched) == ([], ["b"])


def test_what_is_being_loaded_is_not_read_a_second_time(disk: Disk) -> None:
    cache, gate = make_cache(disk, host_bytes=8), Gate()
    disk.gate = lambda name: gate() if name == "b" else None
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.get, "b")
        assert gate.reached.wait(TIMEOUT)
        cache.prefetch(["b", "c"])
        eventually(lambda: cache._prefetcher._fetching == "c")
        gate.open()
        loading.result(TIMEOUT)
    settled(cache)
    assert (disk.loaded, disk.fetched) == (["b"], ["c"])


def test_it_stands_still_while_others_read_from_disk(disk: Disk) -> None:
    cache, first, load = make_cache(disk, host_bytes=8), Gate(), Gate()
    tensors: list[str] = []

    def gate(name: str) -> None:
        tensors.append(name)
        if name == "b":
            first()
        if name == "c":
            load()

    disk.gate = gate
    cache.prefetch(["b"])
    assert first.reached.wait(TIMEOUT)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.get, "c")
        assert load.reached.wait(TIMEOUT)
        first.open()  # it ends the tensor at hand, and waits before the next
        eventually(lambda: cache._prefetcher._reading == 0)
        assert tensors == ["b", "c"]
        assert not disk.fetched
        load.open()
        loading.result(TIMEOUT)
    settled(cache)
    assert tensors == ["b", "c", "b"]


def test_it_reads_with_one_thread_until_somebody_waits(disk: Disk) -> None:
    turn = make_cache(disk)._prefetcher
    inside = threading.Barrier(2, timeout=TIMEOUT)
    turn._fetching = "b"

    def read(count: list[int]) -> None:
        with turn._turn():
            count.append(turn._reading)
            inside.wait()

    counts: list[int] = []
    threads = [threading.Thread(target=read, args=[counts]) for _ in range(2)]
    for thread in threads:
        thread.start()
    eventually(lambda: counts == [1])
    joining = threading.Thread(target=turn.join, args=["b"])
    joining.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(counts) == [1, 2]
    with turn._state:
        turn._fetching = None
        turn._state.notify_all()
    joining.join(TIMEOUT)
    assert not joining.is_alive()


def test_a_file_that_breaks_is_told_to_those_who_need_it(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8)
    disk.broken_weights.add("b")
    prefetch(cache, "b", "c")
    assert cache.in_host == ("c",)
    with pytest.raises(CheckpointError, match="b was changed"):
        cache.get("b")
    disk.broken_weights.clear()
    prefetch(cache, "b", "c")
    assert disk.fetched == ["c"]  # not over and over while the same jobs wait
    prefetch(cache, "c")
    prefetch(cache, "b")
    assert disk.fetched == ["c", "b"]


def test_host_memory_holds_no_more_than_its_budget_while_it_reads(disk: Disk) -> None:
    cache, gate = make_cache(disk, host_bytes=8), Gate()
    prefetch(cache, "a", "b")
    disk.gate = lambda name: gate()
    cache.prefetch(["c"])
    assert gate.reached.wait(TIMEOUT)
    assert cache.in_host == ("b",)
    gate.open()
    settled(cache)
    assert cache.in_host == ("b", "c")


def test_a_file_that_is_replaced_meanwhile_is_read_anew(disk: Disk) -> None:
    old = AssetFile("b", Path("b"), "sd15", 512, 1, marks=((1, 1, 1),))
    files = [old]
    cache = make_cache(disk, host_bytes=8, files=files)

    def replaced(_: str) -> None:
        files[0] = replace(old, marks=((1, 2, 1),))

    disk.gate = replaced
    prefetch(cache, "b")
    assert (disk.fetched, cache.in_host) == (["b", "b"], ("b",))
    assert cache._tiers.host.files["b"] == files[0]

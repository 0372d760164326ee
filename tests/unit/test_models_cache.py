"""The model cache: budget, pins, failures, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farm.errors import CheckpointError, Conflict, DoesNotFit, Unavailable
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import RELENT, ModelCache
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.statistics import CacheStatistics
from farm.worker.models.tiers import SPARE
from tests.conftest import eventually
from tests.fake_disk import Disk, make_cache
from tests.fake_models import Gate


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk.installed(monkeypatch)


@pytest.fixture
def cache(disk: Disk) -> ModelCache:
    return make_cache(disk)


def test_a_second_use_is_a_hit(cache: ModelCache, disk: Disk) -> None:
    assert cache.get("a") is cache.get("a")
    assert disk.loaded == ["a"]
    counts = cache.statistics
    assert counts == CacheStatistics(hits=1, disk_loads=1, disk_seconds=0.5)


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


def test_what_leaves_the_device_returns_from_host_memory(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8)
    first = cache.get("a")
    for name in ("b", "c", "a", "b"):
        cache.get(name)
    assert cache.get("a") is first
    assert disk.loaded == ["a", "b", "c"]
    assert cache.resident == ("b", "a")
    assert cache.in_host == ("c",)
    counts = cache.statistics
    assert (counts.disk_loads, counts.host_loads, counts.evictions) == (3, 2, 3)


def test_host_memory_has_a_budget_and_the_oldest_goes(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=4)
    for name in ("a", "b", "c", "large"):
        cache.get(name)
    assert cache.in_host == ("c",)
    cache.get("a")  # large does not fit in host memory, and is no reason to give up c
    assert cache.in_host == ("c",)
    assert disk.loaded == ["a", "b", "c", "large", "a"]


def test_host_memory_counts_weights_that_only_pass_through_the_device(disk: Disk) -> None:
    disk.too_large.add("large")
    cache = make_cache(disk, host_bytes=8)
    for name in ("large", "a", "b"):
        cache.get(name)
    assert cache.bytes == 1 + 4 + 4
    cache.get("c")
    assert cache.resident == ("b", "c")
    assert cache.in_host == ("a",)
    assert not cache._tiers.fetch("large", (), nullcontext)


def test_a_return_makes_room_without_losing_itself(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=4)
    for name in ("a", "b", "c", "a"):
        cache.get(name)
    assert cache.resident == ("c", "a")
    assert cache.in_host == ("b",)
    assert disk.loaded == ["a", "b", "c"]


def test_a_shared_part_counts_once_and_stays_while_one_needs_it(disk: Disk) -> None:
    vae = nn.Identity()
    disk.common = {"a": (vae, 3), "b": (vae, 3)}
    cache = make_cache(disk, host_bytes=10)
    cache.get("a")
    cache.get("b")
    assert cache.bytes == 1 + 1 + 3
    cache.get("large")
    assert cache.resident == ("large",)
    cache.get("b")
    held: Any = cache.get("a")
    assert cache.bytes == 5
    with cache.use("b"):
        cache.get("c")
        cache.evict("c")
        cache._tiers.leave(["a"])
        assert len(held.in_host) == 1
        assert vae not in held.in_host  # b still computes with it


def test_evicted_it_is_gone_from_host_memory_too(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8)
    for name in ("a", "b", "c"):
        cache.get(name)
    for name in ("a", "b", "unknown"):
        cache.evict(name)
    assert (cache.resident, cache.in_host) == (("c",), ())
    with cache.use("c"), pytest.raises(Conflict, match="c is in use"):
        cache.evict("c")
    assert cache.resident == ("c",)


def test_the_old_ones_stay_until_the_new_one_is_whole(disk: Disk) -> None:
    cache = make_cache(disk)
    cache.get("a")
    cache.get("b")
    disk.broken_weights.add("c")
    with pytest.raises(CheckpointError, match="changed"):
        cache.get("c")
    assert cache.resident == ("a", "b")


def test_where_there_is_no_room_for_both_the_old_one_comes_back(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8, memory_bytes=SPARE + 10)
    cache.get("a")
    cache.get("b")
    disk.broken_weights.add("large")
    with pytest.raises(CheckpointError, match="changed"):
        cache.get("large")
    assert set(cache.resident) == {"a", "b"}
    assert disk.beside[-1] == 0  # they had left before it was read


def test_warming_makes_room_first(disk: Disk) -> None:
    cache = make_cache(disk)
    for name in ("a", "b"):
        cache.get(name)
    cache.warm("c")
    assert cache.resident == ("b", "c")
    assert disk.beside == [0, 1, 1]


def test_a_replaced_file_is_read_anew_unless_it_is_broken(disk: Disk) -> None:
    def file(name: str, mark: int, error: str | None = None) -> AssetFile:
        return AssetFile(name, Path(name), "sd15", 512, 1, error, marks=((1, mark, 1),))

    files = [file("a", 1), file("b", 1), file("c", 1)]
    profile = replace(by_name("cpu"), weights_bytes=20)
    cache = ModelCache(files, profile, torch.device("cpu"))
    for name in ("a", "b", "c"):
        cache.get(name)
    files[:] = [file("a", 2), file("b", 2, error="b is cut short")]  # c is gone
    with cache.use("a"):
        cache.drop_changed()
        assert cache.replaced == 0
    cache.drop_changed()
    assert cache.resident == ("b", "c")
    assert cache.replaced == 1


def test_speed_is_given_up_before_weights_leave(disk: Disk) -> None:
    cache = make_cache(disk)
    checkpoint: Any = cache.pin("a")
    checkpoint.recorded = checkpoint.streamable = True
    assert cache.shed()
    assert (checkpoint.recorded, checkpoint.streamable) == (False, True)
    assert cache.shed()
    assert not cache.shed()


def test_shedding_leaves_only_what_is_in_use(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=8)
    cache.get("a")
    with cache.use("b"):
        assert cache.shed()
        assert (cache.resident, cache.in_host) == (("b",), ("a",))
        assert not cache.shed()


def test_shedding_host_memory_is_for_good(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(disk, host_bytes=8)
    for name in ("a", "b", "c", "large"):
        cache.get(name)
    assert cache.in_host == ("b", "c")
    monkeypatch.setattr(cache, "_device", torch.device("cuda"))
    assert cache.shed_host()
    assert (cache.resident, cache.in_host) == (("large",), ("c",))
    cache.get("a")
    cache.get("b")
    cache.get("large")  # a and b leave, and have no room any more but in c's place
    assert len(cache.in_host) == 1
    assert cache.shed_host()
    assert not cache.shed_host()
    cache.get("a")
    assert cache.in_host == ()


def test_on_a_cpu_the_host_memory_is_the_device(disk: Disk) -> None:
    cache = make_cache(disk)
    cache.get("a")
    with cache.use("b"):
        assert cache.shed_host()
        assert cache.resident == ("b",)
        assert not cache.shed_host()


def test_what_the_device_has_no_memory_for_is_streamed(disk: Disk) -> None:
    disk.too_large.add("large")
    files = [AssetFile(name, Path(name), "sd15", 512, 1) for name in ("a", "large")]
    cache = make_cache(disk, files=files)
    cache.get("a")
    with pytest.raises(torch.OutOfMemoryError):  # others may still leave
        cache.get("large")
    cache.shed()
    assert disk.loaded == ["a"]
    cache.get("large")
    cache.evict("large")
    cache.get("large")  # known from now on
    assert disk.loaded == ["a", "large", "large"]
    disk.too_large.clear()
    assert cache.bytes == 1
    cache.evict("large")
    files[1] = replace(files[1], marks=((1, 2, 1),))  # of another one nothing is known
    cache.get("large")
    assert cache.bytes == 9


def test_weights_that_had_to_pass_through_the_card_stay_there_once_they_were_away(
    disk: Disk,
) -> None:
    cache = make_cache(disk, host_bytes=20)
    with cache.use("a") as checkpoint:
        checkpoint.streamable = True  # type: ignore[attr-defined]
        assert cache.shed()
    for name in ("b", "c"):
        cache.get(name)
    assert cache.in_host == ()
    assert not cache.get("a").squeezed
    assert disk.loaded == ["a", "b", "c", "a"]
    assert cache.in_host == ("b",)


def test_whose_weights_pass_through_the_card_for_long_is_told(disk: Disk) -> None:
    cache = make_cache(disk)
    for name, seconds in (("a", RELENT + 1), ("b", RELENT - 1)):
        cache.get(name).squeezed_seconds = seconds  # type: ignore[misc]
    assert cache.squeezed == ["a"]


def test_where_none_is_idle_weights_of_those_in_use_leave(disk: Disk) -> None:
    cache = make_cache(disk)
    with cache.use("a") as checkpoint:
        checkpoint.streamable = True  # type: ignore[attr-defined]
        assert cache.shed()
        assert not cache.shed()
        assert cache.resident == ("a",)


def test_what_is_in_common_with_one_that_leaves_stays_for_the_new_one(disk: Disk) -> None:
    vae = nn.Identity()
    disk.common = {"a": (vae, 3), "b": (vae, 3)}
    cache = make_cache(disk, host_bytes=20)
    first: Any = cache.get("a")
    cache.get("c")
    disk.sizes["b"] = 6
    cache.get("b")
    assert cache.resident == ("c", "b")
    assert vae not in first.in_host


def test_while_weights_are_copied_to_the_host_nobody_waits_for_the_books(disk: Disk) -> None:
    cache, gate = make_cache(disk, host_bytes=20), Gate()
    for name in ("a", "b"):
        cache.get(name)
    disk.moving = lambda name: gate()
    with ThreadPoolExecutor(2) as pool:
        loading = pool.submit(cache.get, "large")
        assert gate.reached.wait(30)
        looking = pool.submit(lambda: (cache.resident, cache.bytes, cache.in_host))
        try:
            assert looking.result(10) == (("large",), 9, ("a", "b"))
            cache.prefetch(["a"])  # it is on its way already
        finally:
            gate.open()
        loading.result(30)
    assert disk.fetched == []


def test_warming_leaves_alone_what_jobs_need_and_says_that_it_does_not_fit(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=20)
    for name in ("a", "b"):
        cache.get(name)
    cache.need({"a"})
    cache.warm("c")
    assert cache.resident == ("a", "c")
    for _ in range(2):
        with pytest.raises(DoesNotFit, match="beside a, in use"):
            cache.warm("large")
    assert cache.resident == ("a", "c")
    cache.need(())
    cache.warm("large")
    cache.need({"large"})
    with pytest.raises(DoesNotFit):
        cache.warm("b")  # from host memory it is no different
    cache.get("b")  # its jobs' turn has come
    assert cache.resident == ("b",)


def test_what_comes_into_use_while_another_is_read_stays(disk: Disk) -> None:
    cache, gate = make_cache(disk), Gate()
    for name in ("a", "b"):
        cache.get(name)
    disk.gate = lambda name: gate()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(cache.get, "c")
        assert gate.reached.wait(30)
        with cache.use("a"):
            gate.open()
            loading.result(30)
            assert cache.resident == ("a", "c")


def test_memory_that_runs_out_during_a_warm_ends_the_warm(disk: Disk) -> None:
    cache, gate = make_cache(disk, host_bytes=20), Gate()
    cache.get("a")
    disk.gate = lambda name: gate()
    with ThreadPoolExecutor(2) as pool, cache.use("a"):
        warming = pool.submit(cache.warm, "c")
        assert gate.reached.wait(30)
        shedding = pool.submit(cache.shed)
        eventually(lambda: cache._precedence.short)
        gate.open()
        assert not shedding.result(30)
        with pytest.raises(DoesNotFit, match="ran out of memory"):
            warming.result(30)
    assert cache.resident == ("a",)
    disk.gate = lambda name: None
    cache.warm("c")
    assert cache.resident == ("a", "c")


def test_a_warm_stands_back_where_a_job_waits_for_another_checkpoint(disk: Disk) -> None:
    cache, gate = make_cache(disk), Gate()
    disk.gate = lambda name: gate() if name == "c" else None
    with ThreadPoolExecutor(2) as pool:
        warming = pool.submit(cache.warm, "c")
        assert gate.reached.wait(30)
        getting = pool.submit(cache.get, "a")
        eventually(lambda: cache._precedence.hurried)
        gate.open()
        getting.result(30)
        warming.result(30)
    assert disk.loaded == ["a", "c"]
    assert cache.resident == ("a", "c")


def test_a_warm_that_a_job_has_come_to_wait_for_goes_on(disk: Disk) -> None:
    cache, gate = make_cache(disk), Gate()
    disk.gate = lambda name: gate()
    with ThreadPoolExecutor(2) as pool:
        warming = pool.submit(cache.warm, "c")
        assert gate.reached.wait(30)
        getting = pool.submit(cache.get, "c")
        eventually(lambda: cache._precedence.hurried)
        gate.open()
        getting.result(30)
        warming.result(30)
    assert disk.beside == [0]


def test_a_warm_that_never_has_its_turn_says_so(disk: Disk) -> None:
    cache = make_cache(disk)

    def somebody_comes(name: str) -> None:
        if name == "c":
            cache._precedence.hurried.append("a")
            threading.Timer(0, left).start()

    def left() -> None:
        with cache._loading, cache._precedence._told:
            cache._precedence.hurried.clear()
            cache._precedence._told.notify_all()

    disk.gate = somebody_comes
    with pytest.raises(Unavailable, match="had to wait for another checkpoint"):
        cache.warm("c")
    assert disk.loaded == []


def test_without_host_memory_for_it_what_leaves_is_let_go_of(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=20)
    cache.get("a")

    def full(name: str) -> None:
        raise MemoryError

    disk.moving = full
    cache.get("large")
    assert (cache.resident, cache.in_host) == (("large",), ())


def test_whatever_breaks_a_load_those_that_left_for_it_come_back(disk: Disk) -> None:
    cache = make_cache(disk, host_bytes=20, memory_bytes=SPARE + 10)
    cache.get("a")

    def gate(name: str) -> None:
        raise OSError("the disk is gone")

    disk.gate = gate
    with pytest.raises(OSError, match="disk"):
        cache.get("large")
    assert cache.resident == ("a",)


def test_a_look_is_no_use(cache: ModelCache) -> None:
    cache.get("a")
    cache.get("b")
    assert cache.peek("a").name == "a"
    assert cache.resident == ("a", "b")
    assert cache.statistics.hits == 0
    assert cache.peek("c").name == "c"


def test_what_was_in_common_with_one_that_is_gone_leaves_the_device_too(disk: Disk) -> None:
    vae = nn.Identity()
    disk.common = {"a": (vae, 3), "b": (vae, 3)}
    cache = make_cache(disk, host_bytes=20)
    first: Any = cache.get("a")
    cache.get("b")
    cache._tiers.leave(["a"])
    assert vae not in first.in_host
    cache.evict("b")
    assert vae in first.in_host

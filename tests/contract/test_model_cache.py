"""The cache with real weights: what returns is what left, what is alike is one, nothing leaks."""

from __future__ import annotations

import gc
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic
from weakref import WeakSet

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from farm.worker.memory.profiles import GIB, MemoryProfile, by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import scan
from farm.worker.models.checkpoint import Checkpoint
from tests.checkpoints import make_tiny
from tests.conftest import eventually

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints a and b of different weights, and one that is a with the VAE of b."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("ab"):
        inner = folder / f"seed{seed}"
        inner.mkdir()
        path = make_tiny(inner, "sdxl", seed=seed)
        path.rename(folder / f"{name}.safetensors")
        path.with_suffix(".config").rename(folder / f"{name}.config")
    mixed = load_file(folder / "a.safetensors")
    other = load_file(folder / "b.safetensors")
    mixed |= {name: other[name] for name in other if name.startswith("first_stage_model.")}
    save_file(mixed, folder / "mixed.safetensors")
    shutil.copytree(folder / "a.config", folder / "mixed.config")
    return folder


def room_for(weights_bytes: int) -> MemoryProfile:
    return replace(by_name("cpu"), weights_bytes=weights_bytes)


def weights(checkpoint: Checkpoint) -> list[Tensor]:
    return [weight.clone() for module in checkpoint.held for weight in module.parameters()]


@torch.no_grad()
def test_back_from_host_memory_it_is_bit_for_bit_the_same(folder: Path) -> None:
    probe = ModelCache(scan([folder]), room_for(GIB), CPU)
    size = probe.get("a").bytes
    cache = ModelCache(scan([folder]), room_for(size), CPU, host_bytes=GIB)
    checkpoint = cache.get("a")
    before, text = weights(checkpoint), checkpoint.encode("a red apple").tokens
    cache.get("b")
    assert (cache.resident, cache.in_host) == (("b",), ("a",))

    back = cache.get("a")

    assert all(map(torch.equal, weights(back), before))
    assert torch.equal(back.encode("a red apple").tokens, text)
    assert cache.statistics.disk_loads == 2


def test_equal_parts_are_one_and_count_once(folder: Path) -> None:
    cache = ModelCache(scan([folder]), room_for(GIB), CPU)
    a, b, mixed = cache.get("a"), cache.get("b"), cache.get("mixed")
    assert set(mixed.held) <= set(a.held) | set(b.held)
    assert len(set(mixed.held) & set(b.held)) == 1  # the VAE
    assert cache.bytes == a.bytes + b.bytes


def test_two_hundred_switches_leave_no_memory_behind(folder: Path) -> None:
    size = ModelCache(scan([folder]), room_for(GIB), CPU).get("a").bytes
    cache = ModelCache(scan([folder]), room_for(size), CPU)

    seen: WeakSet[Checkpoint] = WeakSet()

    def switch(cache: ModelCache, times: int) -> int:
        for turn in range(times):
            seen.add(cache.get("ab"[turn % 2]))
        gc.collect()
        return int(psutil.Process(os.getpid()).memory_info().rss)

    # Each thread that reads has an allocator's arena of its own, until there are enough of them.
    settled = switch(cache, 16)
    grown = switch(cache, 20) - settled
    assert cache.statistics.disk_loads == 36
    assert len(seen) == 1, "only what is resident is left"
    behind = ModelCache(scan([folder]), room_for(size), CPU, host_bytes=GIB)
    switch(behind, 2)
    settled = switch(behind, 2)
    grown = max(grown, switch(behind, 200) - settled)
    assert behind.statistics.host_loads == 202
    assert len(seen) == 3
    # What no object holds can leak too: of every fifth read, four would.
    assert grown < 3.5 * size, f"{grown / MIB:.1f} MiB more; a checkpoint is {size / MIB:.1f} MiB"


def test_a_unet_in_common_is_streamed_for_all_who_hold_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ModelCache(scan([folder]), room_for(GIB), CPU)
    both = [cache.get(name) for name in ("a", "mixed")]
    forgot = []
    for checkpoint in both:
        # As on a card; what is recorded there reads weights where they lie.
        monkeypatch.setitem(checkpoint._residence.homes, checkpoint._unet, torch.device("cuda"))
        monkeypatch.setattr(
            checkpoint._predictor.forwards, "forget", partial(forgot.append, checkpoint)
        )
    assert not any(checkpoint.squeezed for checkpoint in both)
    assert [checkpoint.stream() for checkpoint in both] == [True, True]
    assert all(checkpoint.squeezed for checkpoint in both)
    assert forgot == both
    now = monotonic() + 100
    monkeypatch.setattr("farm.worker.models.residence.monotonic", lambda: now)
    assert all(checkpoint.squeezed_seconds >= 99 for checkpoint in both)
    assert not any(checkpoint.stream() for checkpoint in both)
    assert [checkpoint.squeezed_seconds for checkpoint in both] == [0, 0]


@torch.no_grad()
def test_read_ahead_it_is_bit_for_bit_what_is_read_from_disk(folder: Path) -> None:
    probe = ModelCache(scan([folder]), room_for(GIB), CPU)
    expected, size = probe.get("mixed"), probe.get("b").bytes
    cache = ModelCache(scan([folder]), room_for(2 * size), CPU, host_bytes=GIB)
    beside = cache.get("b")
    cache.prefetch(["mixed"])
    eventually(lambda: cache.in_host == ("mixed",))
    found = cache.get("mixed")
    assert cache.statistics.disk_loads == 1
    assert list(map(torch.equal, weights(found), weights(expected))) == [True] * len(weights(found))
    assert len({*found.held} & {*beside.held}) == 1  # they have one VAE
    latent = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.decode(latent), expected.decode(latent))
    assert torch.equal(found.encode("a cat").tokens, expected.encode("a cat").tokens)

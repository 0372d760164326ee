"""Checkpoints loaded from several threads at once, the same one and different ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import BUNDLES, AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.loader import load, prepare
from farm.worker.models.parts import build_on_meta, parts_of
from tests.checkpoints import tiny_file

CPU = torch.device("cpu")
FP32 = by_name("cpu")
THREADS = 4


def at_once(work: Callable[[int], object]) -> list[object]:
    """``work(0)``, ``work(1)`` and so on, all begun at the same moment."""
    gate = threading.Barrier(THREADS)

    def begin(number: int) -> object:
        gate.wait(30)
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[AssetFile]:
    folder = tmp_path_factory.mktemp("tiny")
    diffusers = folder / "diffusers"
    diffusers.mkdir()
    return [
        tiny_file(folder, "sdxl"),
        tiny_file(folder, "sd15"),
        tiny_file(diffusers, "sd2", layout="sharded"),
    ]


def weights(file: AssetFile) -> dict[str, torch.Tensor]:
    """Every weight of a checkpoint as it is loaded here and now."""
    return {
        f"{part}.{name}": weight
        for part, module in prepare(file, FP32, CPU).modules().items()
        for name, weight in module.state_dict().items()
    }


@pytest.mark.parametrize("different", [False, True])
def test_all_get_the_very_weights_of_a_lone_load(files: list[AssetFile], different: bool) -> None:
    chosen = files if different else files[:1]
    alone = [weights(file) for file in chosen]
    together = at_once(lambda number: weights(chosen[number % len(chosen)]))
    for number, found in enumerate(together):
        expected = alone[number % len(chosen)]
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_loading_and_computing_do_not_disturb_each_other(files: list[AssetFile]) -> None:
    resident = load(files[0], FP32, CPU)
    before = resident.encode("a red apple").tokens

    def work(number: int) -> object:
        if number % 2:
            return load(files[number % len(files)], FP32, CPU)
        return torch.equal(resident.encode("a red apple").tokens, before)

    results = at_once(work)
    assert all(results[0::2])
    assert all(isinstance(loaded, Checkpoint) for loaded in results[1::2])


def test_a_cache_loads_each_once(files: list[AssetFile]) -> None:
    cache = ModelCache(files, FP32, CPU)
    got = at_once(lambda number: cache.get(files[number % len(files)].name))
    assert cache.statistics.disk_loads == len(files)
    assert len({id(checkpoint) for checkpoint in got}) == len(files)


def test_models_are_built_one_by_one() -> None:
    # transformers exchanges torch.nn.init's functions while it builds; interleaved, two threads
    # would each put back what the other had put there.
    part = parts_of("sd15")[2]
    inside: list[int] = []
    most: list[int] = []

    def watched(config: Mapping[str, Any]) -> nn.Module:
        inside.append(1)
        most.append(len(inside))
        module = part.build(config)
        inside.pop()
        return module

    original = torch.nn.init.normal_
    built = at_once(lambda _: build_on_meta(replace(part, build=watched), BUNDLES / "sd15"))
    assert max(most) == 1
    assert len(built) == THREADS
    assert torch.nn.init.normal_ is original


def test_the_meta_device_is_one_threads_own() -> None:
    entered, leave = threading.Event(), threading.Event()

    def build() -> bool:
        with torch.device("meta"):
            entered.set()
            assert leave.wait(30)
            return torch.empty(1).is_meta

    with ThreadPoolExecutor(1) as pool:
        meta = pool.submit(build)
        assert entered.wait(30)
        assert not torch.empty(1).is_meta
        leave.set()
        assert meta.result(30)

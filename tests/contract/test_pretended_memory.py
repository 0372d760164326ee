"""Memory, streams and recordings on a pretended card."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import DoesNotFit, Unavailable
from farm.worker.engine import Engine, Rendered
from farm.worker.engine.calibration import Calibrated
from farm.worker.memory.experience import Experience
from farm.worker.memory.meter import Meter
from farm.worker.memory.snapshot import Snapshots
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile, scan
from farm.worker.models.forwards import Forwards
from farm.worker.models.graphs import WARM, CudaRecorder, Graphs
from farm.worker.models.offload import Streamed, window_bytes
from tests.card_bench import CPU, CUDA, PLAIN, PRETENDED, engine, rendered, same, spec
from tests.checkpoints import make_tiny, tiny_file
from tests.conftest import eventually
from tests.pretended_card import GIB, Card, Graph

pytestmark = [*PRETENDED]
RECORDED = replace(PLAIN, cuda_graphs=True)


@pytest.fixture
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (Streamed.__init__, window_bytes):
        monkeypatch.setitem(function.__kwdefaults__, "unit_bytes", 8000)  # type: ignore[attr-defined]


@lru_cache
def on_a_cpu(file: Path, *specs: Any) -> list[Rendered]:
    """What is made of jobs on a CPU, by the checkpoint that the last call read."""
    return rendered(Engine(_host(file), PLAIN, CPU), *specs)


@lru_cache(maxsize=1)
def _host(file: Path) -> ModelCache:
    return ModelCache(scan([file.parent]), PLAIN, CPU)


@pytest.mark.usefixtures("small_units")
def test_streamed_weights_make_the_same(card: Card, sd15: AssetFile) -> None:
    """Those of the text encoder, and of the UNet too."""
    jobs = [spec(sd15, seed=seed, steps=2) for seed in (1, 2)]
    profile = replace(PLAIN, offload="streamed", weights_bytes=500_000)
    working = engine(CUDA, [sd15], profile)
    assert same(rendered(working, *jobs), on_a_cpu(sd15.path, *jobs))
    assert not working._core._models.get(sd15.name).squeezed


def test_a_decode_beside_the_steps_is_the_same(card: Card, sd15: AssetFile) -> None:
    jobs = [spec(sd15, seed=seed, steps=1 + seed) for seed in range(3)]
    working = engine(CUDA, [sd15])
    assert same(rendered(working, *jobs), on_a_cpu(sd15.path, *jobs))
    assert any(span.track == "beside" for span in working.timeline.spans())


def test_in_tiles_too(card: Card, sd15: AssetFile) -> None:
    job = spec(sd15, width=128, height=64, steps=1)
    profile = replace(PLAIN, vae_tile_over=64**2, vae_tile=64)
    expected = rendered(engine(CPU, [sd15], profile), job)
    assert same(rendered(engine(CUDA, [sd15], profile), job), expected)


def test_a_step_waits_for_nothing_but_the_one_before(card: Card, sd15: AssetFile) -> None:
    rendered(engine(CUDA, [sd15]), spec(sd15, steps=5, sampler="Euler a"))
    loading = ("reader.py", "plan.py", "flaws.py")
    waits = [why for why in card.waits if not any(name in why for name in loading)]
    assert [why for why in waits if not why.startswith("an event")] == []


def test_away_to_host_memory_and_back(card: Card, tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        make_tiny(tmp_path, "sd15", seed=seed, name=name)
    files = scan([tmp_path])
    profile = replace(PLAIN, weights_bytes=files[0].bytes)  # of the weights, and a little more
    models = ModelCache(files, profile, CUDA, host_bytes=GIB)
    one = models.get("a")
    before = [weight.cpu() for module in one.weights for weight in module.parameters()]
    models.prefetch(["b"])
    eventually(lambda: models.in_host == ("b",))
    models.warm("b")
    assert (models.resident, models.in_host) == (("b",), ("a",))
    assert not any(w.is_cuda for module in one.weights for w in module.parameters())
    assert models.get("a") is one
    after = [weight.cpu() for module in one.weights for weight in module.parameters()]
    assert all(map(torch.equal, before, after))
    models.evict("a")
    models.evict("b")
    assert (models.resident, models.in_host) == ((), ())


def test_what_was_taken_is_given_back(card: Card, sd15: AssetFile) -> None:
    working = engine(CUDA, [sd15])
    rendered(working, spec(sd15, steps=1))
    models = working._core._models
    assert card.allocated < models.bytes * 1.2 + 100_000


PLACES = 2


def test_memory_that_runs_out_anywhere_costs_no_picture(card: Card, sd15: AssetFile) -> None:
    """Once in each of many places: fewer rows, a decode between steps, another try."""
    jobs = [spec(sd15, seed=seed, sampler="Euler a", steps=1) for seed in (1, 2)]
    expected = on_a_cpu(sd15.path, *jobs)
    allocations = itertools.count()
    card.refuse = lambda _: next(allocations) < 0
    rendered(engine(CUDA, [sd15]), *jobs)
    for place in range(0, next(allocations), next(allocations) // PLACES):
        refused = itertools.count()
        card.refuse = lambda _, n=refused, at=place: next(n) == at
        for made, wanted in zip(rendered(engine(CUDA, [sd15]), *jobs), expected, strict=True):
            # In a forward of another size the last bit may be another.
            assert np.abs(made.image.astype(int) - wanted.image.astype(int)).max() <= 1, place


def test_memory_that_is_short_for_good_fails_with_what_to_do(card: Card, sd15: AssetFile) -> None:
    working = engine(CUDA, [sd15])
    working.start()
    assert working.submit("1", spec(sd15, steps=1)).result(60)
    card.refuse = lambda size: size > 4000
    with pytest.raises(DoesNotFit, match="ran out of memory"):
        working.submit("2", spec(sd15, seed=2)).result(60)
    card.refuse = lambda _: False
    assert working.submit("3", spec(sd15, width=128, steps=1)).result(60)
    working.stop()


def test_a_fault_of_the_device_ends_the_process(card: Card, sd15: AssetFile) -> None:
    lost: list[BaseException] = []
    working = engine(CUDA, [sd15], on_lost=lost.append)
    working.start()
    working.submit("1", spec(sd15, steps=1)).result(60)
    card.broken = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(Unavailable, match="illegal memory access"):
        working.submit("2", spec(sd15, seed=2)).result(60)
    assert len(lost) == 1


def test_recorded_forwards_make_the_same(
    card: Card, sd15: AssetFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[Graph] = []
    begin = Graph.capture_begin
    monkeypatch.setattr(
        Graph, "capture_begin", lambda self, *a, **o: recorded.append(self) or begin(self, *a, **o)
    )
    jobs = [spec(sd15, seed=seed, steps=5, sampler="Euler a") for seed in (1, 2)]
    assert same(rendered(engine(CUDA, [sd15], RECORDED), *jobs), on_a_cpu(sd15.path, *jobs))
    assert [graph.replays for graph in recorded] == [5 - WARM]


def test_a_recording_that_fails_leaves_the_thread_on_its_stream(card: Card) -> None:
    calls = Graphs(CudaRecorder(CUDA))
    weight = torch.ones(3, device="cuda")
    for _ in range(WARM + 2):
        made = calls("key", lambda inputs: inputs[0] * float(weight.sum()), (weight,))
    assert made.cpu().tolist() == [3.0, 3.0, 3.0]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_recordings_go_where_memory_runs_out(card: Card, sd15: AssetFile) -> None:
    working = engine(CUDA, [sd15], RECORDED)
    with working:
        working.submit("1", spec(sd15, steps=4)).result(60)
        forwards: Forwards = working._core._models.get(sd15.name)._predictor.forwards
        assert forwards._graphs
        tries = itertools.count()
        card.refuse = lambda size: size > 4000 and not next(tries)
        made = working.submit("2", spec(sd15, seed=2, steps=3)).result(60)
        assert forwards._graphs is None
    assert same([made], on_a_cpu(sd15.path, spec(sd15, seed=2, steps=3)))


def test_compiled_blocks_are_used_once_they_are_ready(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def compiling(call: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        return lambda *args, **options: compiled.append(call) or call(*args, **options)

    monkeypatch.setattr(torch, "compile", compiling)
    file = tiny_file(tmp_path, "sd15")
    profile = replace(PLAIN, compile="regional", cuda_graphs=True)
    working = engine(CUDA, [file], profile)
    with working:
        working.submit("1", spec(file, steps=3)).result(60)
        forwards: Forwards = working._core._models.get(file.name)._predictor.forwards
        assert forwards._compiled
        forwards._compiled.wait()
        before = len(compiled)
        made = working.submit("2", spec(file, seed=2, steps=6)).result(60)
        assert len(compiled) > before
    assert same([made], on_a_cpu(file.path, spec(file, seed=2, steps=6)))


def test_calls_are_measured(card: Card, sd15: AssetFile, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which number of rows is quickest is not asked here: others may have the processor meanwhile.
    monkeypatch.setattr("farm.worker.engine.worth.OVERHEAD_SECONDS", math.inf)
    experience = Experience()
    profile = replace(PLAIN, buckets=(1, 2), max_rows=2, rows_at_1024=1)
    with engine(CUDA, [sd15], profile, experience=experience) as working:
        found: list[Calibrated] = working.calibrate(sd15.name, [(64, 64)])
        limits = working._core._limits
        assert limits.allowed(sd15.name, 64, 64) >= 2
    assert all(each.bytes and each.seconds is not None for each in found)
    assert found[0].bytes < found[1].bytes
    assert experience.outside == card.total - card.free - card.reserved


def test_what_a_block_takes(card: Card) -> None:
    meter = Meter(CUDA)
    with meter.taking() as taken:
        for _ in range(2):
            torch.zeros(1 << 18, device="cuda")
    assert taken.bytes == 1 << 20
    reading = meter.sample()
    assert reading.active == 1 << 20
    assert reading.system_used == card.total - card.free


def test_a_snapshot_is_written_when_asked_and_when_memory_runs_out(card: Card) -> None:
    snapshots = Snapshots(CUDA)
    assert snapshots.take()
    assert snapshots.take(seconds=0.001)
    assert card.recording[0] is None  # recording has ended
    card.refuse = lambda _: True
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(4, device="cuda")
    assert snapshots.exhausted

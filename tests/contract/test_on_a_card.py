"""What only a real card can show: ``make gpu-check`` runs it; without a card it is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import full_size
from farm.errors import DoesNotFit
from farm.worker.engine.decodes import _on
from farm.worker.memory.meter import Meter
from farm.worker.memory.planner import peak_bytes
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.memory.snapshot import Snapshots
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile, builtin_folder, scan
from farm.worker.models.loader import load
from farm.worker.models.offload import Streamed, window_bytes
from farm.worker.samplers.philox import normal
from tests.card_bench import CPU, CROWD, CUDA, PLAIN, engine, rendered, same, spec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
HALF = by_name("24gb")


@pytest.fixture(scope="module")
def demo() -> AssetFile:
    return next(file for file in scan([builtin_folder()]) if file.name == "demo")


@pytest.fixture
def exact() -> Iterator[None]:
    """float32 is float32, in convolutions too."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_memory_is_read_before_anything_else() -> None:
    reading = Meter(CUDA).sample()
    assert 0 < reading.system_used <= reading.system_total


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_noise_of_source_nv_is_the_card_s(seed: int) -> None:
    generator = torch.Generator("cuda").manual_seed(seed)
    for call in range(3):
        theirs = torch.randn(4 * 64 * 64, device="cuda", generator=generator).cpu()
        # The card's sines and logarithms are single precision; webui's and ours are double.
        torch.testing.assert_close(normal(seed, call, len(theirs)), theirs, rtol=1e-4, atol=1e-5)


def test_weights_come_to_the_card_bit_for_bit(demo: AssetFile) -> None:
    here, there = (load(demo, HALF, device) for device in (CUDA, CPU))
    assert here.bytes == there.bytes > 0
    for ours, theirs in zip(here.weights, there.weights, strict=True):
        for name, weight in ours.named_parameters():
            assert weight.is_cuda
            assert torch.equal(weight.cpu(), theirs.get_parameter(name)), name


@pytest.mark.usefixtures("exact")
def test_pictures_are_those_of_a_cpu(demo: AssetFile) -> None:
    crowd = [spec(demo, **changes) for changes in CROWD]
    made, expected = (rendered(engine(device, [demo]), *crowd) for device in (CUDA, CPU))
    for job, ours, theirs in zip(crowd, made, expected, strict=True):
        apart = np.abs(ours.image.astype(int) - theirs.image.astype(int))
        assert apart.mean() < 1, job.sampler


@torch.no_grad()
def test_a_decode_on_a_stream_of_its_own_is_the_same(demo: AssetFile) -> None:
    checkpoint = load(demo, HALF, CUDA)
    latent = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(1)).to(CUDA)
    plain, side = checkpoint.decode(latent), torch.cuda.Stream(CUDA)
    busy = torch.randn(2048, 2048, device=CUDA)
    for _ in range(5):
        with _on(side):
            draft = checkpoint.draft(latent, whole=True)
        for _ in range(20):
            busy = busy @ busy / 45
        side.synchronize()
        assert bool(draft.finite)
        assert torch.equal(draft.pixels.cpu(), plain)


def test_recorded_forwards_are_those_that_run_as_they_are(demo: AssetFile) -> None:
    recorded = replace(HALF, cuda_graphs=True)
    jobs = [spec(demo, seed=seed, steps=8, sampler="Euler a") for seed in (1, 2)]
    made, plain = (rendered(engine(CUDA, [demo], each), *jobs) for each in (recorded, HALF))
    for ours, theirs in zip(made, plain, strict=True):
        assert np.abs(ours.image.astype(int) - theirs.image.astype(int)).max() <= 2


def test_streamed_weights_make_the_same(demo: AssetFile, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [spec(demo, seed=seed, steps=8) for seed in (1, 2)]
    resident = rendered(engine(CUDA, [demo]), *jobs)
    for function in (Streamed.__init__, window_bytes):
        monkeypatch.setitem(function.__kwdefaults__, "unit_bytes", 1 << 20)  # type: ignore[attr-defined]
    whole = ModelCache([demo], PLAIN, CPU).get("demo").bytes
    streamed = replace(PLAIN, offload="streamed", weights_bytes=whole - 1)
    working = engine(CUDA, [demo], streamed)
    assert same(rendered(working, *jobs), resident)


def test_memory_that_runs_out_fails_that_job_alone(demo: AssetFile) -> None:
    working = engine(CUDA, [demo], HALF)
    with working:
        assert working.submit("1", spec(demo)).result(100)
        total = torch.cuda.get_device_properties(CUDA).total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        try:
            with pytest.raises(DoesNotFit):
                working.submit("2", spec(demo, width=2048, height=2048, steps=1)).result(100)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert working.submit("3", spec(demo, seed=2)).result(100)


def test_a_snapshot_is_written() -> None:
    assert len(Snapshots(CUDA).take(seconds=0.01)) > 0


def test_calls_are_measured(demo: AssetFile) -> None:
    with engine(CUDA, [demo], HALF) as working:
        found = working.calibrate("demo", [(128, 128)])
    assert all(each.bytes and each.seconds for each in found)


@pytest.mark.parametrize("side", [512, 768])
def test_the_peak_of_a_full_size_model_is_foretold(tmp_path: Path, side: int) -> None:
    path = tmp_path / "sd15.safetensors"
    full_size.write(path, "sd15")
    total = torch.cuda.get_device_properties(CUDA).total_memory
    profile: MemoryProfile = replace(HALF, memory_bytes=min(HALF.memory_bytes, total), slots=4)
    working = engine(CUDA, scan([tmp_path]), profile)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    jobs = [spec(scan([tmp_path])[0], seed=n, width=side, height=side, steps=2) for n in range(4)]
    rows = max(rendered(working, *jobs)[-1].stats.buckets)
    free, everything = torch.cuda.mem_get_info()
    outside = everything - free - torch.cuda.memory_reserved()
    measured = torch.cuda.max_memory_reserved() + outside
    said = peak_bytes(profile, "sd15", side * side, rows)
    assert said == pytest.approx(measured, rel=0.05)

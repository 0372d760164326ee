"""Both passes of a hires fix on a pretended card: the CPU's pictures, whoever began them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.worker.engine import upscales
from farm.worker.memory.planner import enlarge_bytes
from farm.worker.models.catalogue import AssetFile, scan
from tests.card_bench import CPU, CUDA, PRETENDED, engine, rendered, same, spec
from tests.pretended_card import Card
from tests.upscalers import esrgan, write_upscaler

pytestmark = [*PRETENDED]


SWEEP = [
    {"hires_upscaler": upscaler, "denoising_strength": strength, "extra_noise": 0.1}
    for upscaler in ("Latent (bicubic antialiased)", "Lanczos")
    for strength in (0.0, 0.5)
]


def test_a_sweep_is_that_of_a_cpu_and_goes_on_from_what_was_kept(
    card: Card, sd15: AssetFile
) -> None:
    size = {"hires_width": 96, "hires_height": 80, "steps": 3, "strict": True}
    jobs = [spec(sd15, **size, **changes) for changes in SWEEP]
    later = [job.model_copy(update={"hires_steps": 2}) for job in jobs]
    made = {}
    for device in (CUDA, CPU):
        with engine(device, [sd15]) as running:
            futures = [running.submit(f"now {n}", job) for n, job in enumerate(jobs)]
            first = [future.result(120) for future in futures]
            forwards = running.counters.forwards
            futures = [running.submit(f"later {n}", job) for n, job in enumerate(later)]
            made[device] = first + [future.result(120) for future in futures]
            assert running.counters.forwards - forwards <= 2 * 2
    assert same(made[CUDA], made[CPU])
    assert made[CPU][0].image.shape == (80, 96, 3)


def test_a_model_enlarges_as_on_a_cpu(
    card: Card, sd15: AssetFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two runs of several tiles, beside another job."""
    monkeypatch.setattr(upscales, "TILE", 48)
    write_upscaler(tmp_path / "ESRGAN" / "two.pth", esrgan(scale=2))
    files = [sd15, *scan([tmp_path])]
    changes = {"hires_scale": 4, "hires_upscaler": "two", "denoising_strength": 0, "steps": 1}
    jobs = [spec(sd15, **changes), spec(sd15, seed=2)]
    expected = rendered(engine(CPU, files), *jobs)
    working = engine(CUDA, files)
    assert same(rendered(working, *jobs), expected)
    assert expected[0].image.shape == (256, 256, 3)
    assert not card.races
    assert not working._core.upscales._under_way


def upscaling(folder: Path, sd15: AssetFile) -> tuple[list[AssetFile], list[Any]]:
    """Files with a model, a job that it enlarges a picture of 192 for, and one beside it."""
    write_upscaler(folder / "ESRGAN" / "two.pth", esrgan(scale=2))
    changes = {"hires_scale": 2, "hires_upscaler": "two", "denoising_strength": 0, "steps": 1}
    large = spec(sd15, width=192, height=192, **changes)
    return [sd15, *scan([folder])], [large, spec(sd15, seed=2)]


@pytest.mark.parametrize(
    ("most", "refused"),
    [(48, [192, 96]), (0, [192, 96, 48])],
)
@pytest.mark.usefixtures("card")
def test_without_memory_tiles_become_smaller_and_then_the_cpu_makes_them(
    sd15: AssetFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    refused: list[int],
) -> None:
    """None is tried twice, by the next picture neither."""
    files, (large, beside) = upscaling(tmp_path, sd15)
    call, tried, fitting = upscales.PlacedUpscaler.__call__, [], set()

    def short(self: Any, tile: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cuda" and len(tile) > most:
            tried.append(len(tile))
            raise torch.OutOfMemoryError("CUDA out of memory")
        fitting.add((self._device.type, len(tile)))
        return call(self, tile)

    monkeypatch.setattr(upscales.PlacedUpscaler, "__call__", short)
    with engine(CUDA, files) as working:
        futures = [working.submit(str(each.seed), each) for each in (large, beside)]
        image, other = [future.result(120) for future in futures]
        again = working.submit("again", large.model_copy(update={"seed": 3})).result(60)
    assert tried == refused
    assert fitting == {("cuda", most)} if most else {("cpu", 192)}
    for each in (image, again):
        assert each.image.shape == (384, 384, 3)
        assert (each.stats.upscale_host_seconds > 0) == (not most)
    assert other.stats.upscale_host_seconds == 0
    expected = rendered(engine(CPU, files), large, beside)
    assert np.array_equal(other.image, expected[1].image)
    if not most:
        assert np.array_equal(image.image, expected[0].image)


@pytest.mark.parametrize("side", [192, 96])
def test_a_tile_that_runs_out_of_memory_once_costs_nobody_a_picture(
    card: Card, sd15: AssetFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int
) -> None:
    monkeypatch.setattr(upscales, "TILE", side)
    files, (large, beside) = upscaling(tmp_path, sd15)
    call, tried = upscales.PlacedUpscaler.__call__, []

    def short(self: Any, tile: torch.Tensor) -> torch.Tensor:
        tried.append(len(tile))
        if len(tried) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(self, tile)

    monkeypatch.setattr(upscales.PlacedUpscaler, "__call__", short)
    image, other = rendered(engine(CUDA, files), large, beside)
    assert image.image.shape == (384, 384, 3)
    assert set(tried[1:]) == {max(side // 2, 48)}
    assert image.stats.upscale_host_seconds == other.stats.upscale_host_seconds == 0


def test_a_model_that_does_not_fit_on_the_card_is_at_work_on_the_cpu(
    card: Card, sd15: AssetFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, (large, beside) = upscaling(tmp_path, sd15)
    placed = upscales.Upscaler.placed

    def short(self: Any, dtype: torch.dtype, device: torch.device) -> Any:
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return placed(self, dtype, device)

    monkeypatch.setattr(upscales.Upscaler, "placed", short)
    made = rendered(engine(CUDA, files), large, beside)
    assert same(made, rendered(engine(CPU, files), large, beside))
    assert made[0].stats.upscale_host_seconds > 0


def test_what_models_take_is_in_the_peak_that_was_planned(
    card: Card, sd15: AssetFile, tmp_path: Path
) -> None:
    """While one is at work it is counted; a forward that would not fit beside it has it leave."""
    files, (large, _) = upscaling(tmp_path, sd15)
    with engine(CUDA, files) as working:
        core, seen = working._core, []
        step = core.upscales._step

        def watched(request: Any, job: Any) -> None:
            step(request, job)
            call = next(iter(core.upscales._under_way.values())).upscaler.call(torch.float32)
            planned = enlarge_bytes(replace(call, pixels=192**2), 2)
            weights = core._models.bytes + core._models.guest_bytes
            seen.append((core._models.guest_bytes, card.peak - weights, planned))

        core.upscales._step = watched  # type: ignore[method-assign]
        card.reset_peaks()
        working.submit("1", large).result(60)
    guests, held, planned = seen[0]
    assert guests == sum(weight.nbytes for weight in esrgan(scale=2).values())
    assert 0 < held <= planned
    assert not core._models.guest_bytes

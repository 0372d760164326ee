"""Both passes of a hires fix on a pretended card: the CPU's pictures, whoever began them."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.worker.engine import upscales
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

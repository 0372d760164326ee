"""Real models that overflow in float16, and pictures that are dark because they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from farm.spec.job import JobSpec
from farm.worker.engine import Engine, Rendered
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan
from farm.worker.picture import remark

CPU = torch.device("cpu")
FULL = by_name("cpu")
HALF = replace(FULL, dtype="float16")
DEMO = builtin_folder() / "demo.safetensors"
UNET_IN = "model.diffusion_model.input_blocks.0.0.weight"
VAE_IN = "first_stage_model.decoder.conv_in.weight"
VAE_OUT = "first_stage_model.decoder.conv_out."

Weights = dict[str, torch.Tensor]


def planted(folder: Path, name: str, change: Callable[[Weights], Mapping[str, object]]) -> None:
    """The demo checkpoint with some weights changed."""
    weights = load_file(DEMO)
    weights |= change(weights)
    save_file(weights, folder / f"{name}.safetensors")
    (folder / f"{name}.config").symlink_to(DEMO.with_suffix(".config"))


def times(name: str, factor: float) -> Callable[[Weights], Weights]:
    return lambda weights: {name: weights[name] * factor}


def dark(weights: Weights) -> Weights:
    bias = torch.full_like(weights[f"{VAE_OUT}bias"], -0.97)
    return {f"{VAE_OUT}weight": weights[f"{VAE_OUT}weight"] * 0.01, f"{VAE_OUT}bias": bias}


def made(models: ModelCache, profile: MemoryProfile, *jobs: JobSpec) -> list[Rendered]:
    with Engine(models, profile, CPU) as engine:
        futures = [engine.submit(str(place), job) for place, job in enumerate(jobs)]
        return [future.result(120) for future in futures]


def cache(folder: Path, profile: MemoryProfile) -> ModelCache:
    return ModelCache(scan([builtin_folder(), folder]), profile, CPU)


def job(checkpoint: str, seed: int, steps: int = 3) -> JobSpec:
    return JobSpec(
        prompt="a red apple",
        checkpoint=checkpoint,
        seed=seed,
        steps=steps,
        cfg_scale=3.0,
        width=64,
        height=64,
    )


@pytest.mark.parametrize("overflowing", [UNET_IN, VAE_IN])
def test_what_overflows_in_half_precision_is_saved_alone(tmp_path: Path, overflowing: str) -> None:
    planted(tmp_path, "hot", times(overflowing, 3e4))
    jobs = [job("demo", 1), job("hot", 2), job("demo", 3)]
    models = cache(tmp_path, HALF)
    cool, hot, other = made(models, HALF, *jobs)
    [expected] = made(cache(tmp_path, FULL), FULL, jobs[1])
    apart = np.abs(hot.image.astype(int) - expected.image.astype(int))
    assert apart.mean() < 6
    assert expected.image.std() > 10
    saved = (hot.stats.precision, models.get("hot")._decoder.dtype)
    assert saved == (
        ("bfloat16", torch.float16) if overflowing == UNET_IN else (None, torch.bfloat16)
    )
    assert (cool.stats.precision, other.stats.precision) == (None, None)
    assert models.get("demo")._decoder.dtype == torch.float16


def test_fifty_honest_dark_pictures_are_kept(tmp_path: Path) -> None:
    planted(tmp_path, "night", dark)
    jobs = [job("night", seed, steps=1) for seed in range(50)]
    pictures = made(cache(tmp_path, FULL), FULL, *jobs)
    assert {picture.stats.precision for picture in pictures} == {None}
    assert all(picture.image.max() < 12 for picture in pictures)
    assert {remark(picture.image) for picture in pictures} == {"almost black"}

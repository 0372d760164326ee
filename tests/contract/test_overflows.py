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


def loud(query: float, key: float) -> Callable[[Weights], Weights]:
    """In one layer of the UNet all queries and all keys are the same vector of so large numbers:
    scores are large, and all alike, so that how exact they are makes no difference."""

    def change(weights: Weights) -> Weights:
        first = min(name for name in weights if name.endswith(".attn1.to_q.weight"))
        block = first.removesuffix("attn1.to_q.weight")
        keys = f"{block}attn1.to_k.weight"
        width = weights[first].shape[1]
        # Of both signs, as torch's kernel for a CPU makes numbers of scores that are all infinite.
        signs = torch.tensor([1.0, -0.5]).repeat(len(weights[keys]) // 2)[:, None]
        return {
            f"{block}norm1.weight": torch.zeros_like(weights[f"{block}norm1.weight"]),
            f"{block}norm1.bias": torch.ones_like(weights[f"{block}norm1.bias"]),
            first: torch.full_like(weights[first], query / width),
            keys: (torch.full_like(weights[keys], key / width) * signs).to(weights[keys].dtype),
        }

    return change


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
    jobs = [job("demo", 1), job("hot", 2), job("demo", 3), job("hot", 4)]
    models = cache(tmp_path, HALF)
    cool, hot, other, _ = made(models, HALF, *jobs)
    [expected] = made(cache(tmp_path, FULL), FULL, jobs[1])
    apart = np.abs(hot.image.astype(int) - expected.image.astype(int))
    assert apart.mean() < 6
    assert expected.image.std() > 10
    # What overflows everywhere is in vain tried with attention alone in float32.
    saved = (hot.stats.precision, models.get("hot")._decoder.dtype)
    assert saved == (
        ("bfloat16", torch.float16) if overflowing == UNET_IN else (None, torch.bfloat16)
    )
    assert (cool.stats.precision, other.stats.precision) == (None, None)
    assert models.get("demo")._decoder.dtype == torch.float16


def test_what_a_vae_needs_is_known_after_its_weights_left_but_not_to_strict_jobs(
    tmp_path: Path,
) -> None:
    planted(tmp_path, "hot", times(VAE_IN, 3e4))
    models = cache(tmp_path, HALF)
    first, second, strict = (job("hot", seed, steps=1) for seed in (1, 2, 1))
    strict = strict.model_copy(update={"strict": True})
    with Engine(models, HALF, CPU) as engine:
        before = engine.submit("0", strict).result(60)
        engine.submit("1", first).result(60)
        engine.submit("2", second).result(60)
        models.evict("hot")
        decoder = models.get("hot")._decoder
        assert decoder.dtype == torch.bfloat16
        assert next(decoder._vae.parameters()).dtype == torch.float16
        again = engine.submit("3", strict).result(60)
    assert np.array_equal(before.image, again.image)
    assert decoder._ladder(strict=True)[0] == torch.float16


@pytest.mark.parametrize(
    ("attention", "query", "key"),
    [
        ("sdpa", 1e5, 1e-3),  # its kernels' scores are in float32: only queries can overflow
        ("sliced", 400.0, 400.0),
    ],
)
def test_where_attention_alone_overflows_it_alone_is_lifted_and_that_is_remembered(
    tmp_path: Path, attention: str, query: float, key: float
) -> None:
    planted(tmp_path, "loud", loud(query, key))
    profile = replace(HALF, attention=attention)
    jobs = [job("loud", seed, steps=2) for seed in range(3)]
    models = cache(tmp_path, profile)
    with Engine(models, profile, CPU) as engine:
        # One after another; with guidance each step takes two rows, one at a time.
        pictures = [engine.submit(str(each.seed), each).result(120) for each in jobs]
        [cool] = [engine.submit("cool", job("demo", 1, steps=1)).result(120)]
    assert {picture.stats.precision for picture in pictures} == {
        "float16 with attention in float32"
    }
    assert [picture.stats.forwards for picture in pictures] == [5, 5, 4]
    assert cool.stats.precision is None
    [expected] = made(cache(tmp_path, FULL), FULL, jobs[0])
    apart = np.abs(pictures[0].image.astype(int) - expected.image.astype(int))
    assert apart.mean() < 2
    assert expected.image.std() > 10


def test_fifty_honest_dark_pictures_are_kept(tmp_path: Path) -> None:
    planted(tmp_path, "night", dark)
    jobs = [job("night", seed, steps=1) for seed in range(50)]
    pictures = made(cache(tmp_path, FULL), FULL, *jobs)
    assert {picture.stats.precision for picture in pictures} == {None}
    assert all(picture.image.max() < 12 for picture in pictures)
    assert {remark(picture.image) for picture in pictures} == {"almost black"}

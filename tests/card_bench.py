"""Small jobs on a card, real or pretended, and what they are held against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from farm.spec.job import JobSpec
from farm.worker.engine import Engine, Rendered
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = replace(by_name("24gb"), dtype="float32")
"""A card's profile in the precision in which a CPU makes the same bits."""

PRETENDED = (
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.skipif(
        torch.cuda.is_available() or not torch.backends.cuda.is_built(),
        reason="there is a card, or a torch that knows none",
    ),
)
"""Marks of tests on a pretended card."""

CROWD: tuple[dict[str, Any], ...] = (
    {},
    {"sampler": "Euler a", "rng": "NV"},
    {"sampler": "DPM++ 2M SDE Karras", "seed": 7, "variation_seed": 3, "variation_strength": 0.2},
    {"sampler": "DPM++ SDE", "prompt": "a cat AND a dog :0.5", "negative_prompt": "fog"},
    {"sampler": "UniPC", "prompt": "[a:b:2] (lion:1.3)", "cfg_rescale": 0.5},
    {"sampler": "LMS", "prompt": "word " * 90},
    {"sampler": "Heun", "s_churn": 5.0, "cfg_scale": 1.0},
    {"sampler": "DPM adaptive", "negative_prompt": "", "width": 128},
)
"""Jobs of every kind of sampler, noise and prompt."""


def spec(file: AssetFile, prompt: str = "a red apple", **changes: Any) -> JobSpec:
    """A small job."""
    values = {"width": 64, "height": 64, "steps": 3, "cfg_scale": 3.0, "sampler": "Euler"}
    return JobSpec(checkpoint=file.name, prompt=prompt, **(values | {"seed": 1} | changes))


def engine(
    device: torch.device,
    files: Iterable[AssetFile],
    profile: MemoryProfile = PLAIN,
    *,
    host_bytes: int = 0,
    **options: Any,
) -> Engine:
    """An engine with an empty cache, not yet started."""
    models = ModelCache(files, profile, device, host_bytes=host_bytes)
    return Engine(models, profile, device, assets=files, **options)


def rendered(engine: Engine, *specs: JobSpec) -> list[Rendered]:
    """Images of jobs that share a card; the engine is stopped then."""
    futures = [engine.submit(str(place), job) for place, job in enumerate(specs)]
    with engine:
        return [future.result(100) for future in futures]


def same(made: Sequence[Rendered], expected: Sequence[Rendered]) -> bool:
    """Whether all images are equal, bit for bit."""
    return all(np.array_equal(a.image, b.image) for a, b in zip(made, expected, strict=True))

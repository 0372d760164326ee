"""The whole engine on a pretended card: the CPU's pictures, bit for bit, and nothing it would die
of on a real one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.spec.job import JobSpec
from farm.worker.engine import Engine, Rendered
from farm.worker.memory.meter import Meter
from farm.worker.memory.profiles import MemoryProfile, by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from tests.checkpoints import tiny_file
from tests.pretended_card import Card, pretended

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = replace(by_name("24gb"), dtype="float32")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.skipif(
        torch.cuda.is_available() or not torch.backends.cuda.is_built(),
        reason="there is a card, or a torch that knows none",
    ),
]


@pytest.fixture
def card() -> Iterator[Card]:
    with pretended() as card:
        yield card
    assert card.races == []


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> AssetFile:
    return tiny_file(tmp_path_factory.mktemp("sd15"), "sd15")


def spec(file: AssetFile, prompt: str = "a red apple", **changes: Any) -> JobSpec:
    values = {"width": 64, "height": 64, "steps": 3, "cfg_scale": 3.0, "sampler": "Euler"}
    return JobSpec(checkpoint=file.name, prompt=prompt, **(values | {"seed": 1} | changes))


def render(
    device: torch.device,
    files: Sequence[AssetFile],
    *specs: JobSpec,
    profile: MemoryProfile = PLAIN,
    **options: Any,
) -> list[Rendered]:
    """Images of jobs that share a card, as they come from an engine."""
    models = ModelCache(files, profile, device)
    engine = Engine(models, profile, device, assets=files, **options)
    futures = [engine.submit(str(place), job) for place, job in enumerate(specs)]
    with engine:
        return [future.result(60) for future in futures]


def same(made: Sequence[Rendered], expected: Sequence[Rendered]) -> bool:
    return all(np.array_equal(a.image, b.image) for a, b in zip(made, expected, strict=True))


def test_memory_is_read_before_anything_else_was_done_on_the_card(card: Card) -> None:
    reading = Meter(CUDA).sample()  # as a worker does first of all
    assert (reading.active, reading.reserved, reading.system_total) == (0, 0, card.total)


CROWD: list[dict[str, Any]] = [
    {},
    {"sampler": "Euler a", "rng": "NV"},
    {"sampler": "DPM++ 2M SDE Karras", "seed": 7, "variation_seed": 3, "variation_strength": 0.2},
    {"sampler": "DPM++ SDE", "prompt": "a cat AND a dog :0.5", "negative_prompt": "fog"},
    {"sampler": "UniPC", "prompt": "[a:b:2] (lion:1.3)", "cfg_rescale": 0.5},
    {"sampler": "LMS", "prompt": "word " * 90},
    {"sampler": "Heun", "s_churn": 5.0, "cfg_scale": 1.0},
    {"sampler": "DPM adaptive", "negative_prompt": ""},
]


def test_a_crowd_of_samplers_and_prompts_makes_the_pictures_of_a_cpu(
    card: Card, sd15: AssetFile
) -> None:
    crowd = [spec(sd15, **changes) for changes in CROWD]
    assert same(render(CUDA, [sd15], *crowd), render(CPU, [sd15], *crowd))


def test_weights_are_on_the_card_and_are_the_files(card: Card, sd15: AssetFile) -> None:
    here = ModelCache([sd15], PLAIN, CUDA).get(sd15.name)
    there = ModelCache([sd15], PLAIN, CPU).get(sd15.name)
    assert here.bytes == there.bytes > 0
    for ours, theirs in zip(here.weights, there.weights, strict=True):
        for name, weight in ours.named_parameters():
            assert weight.is_cuda
            assert torch.equal(weight.cpu(), theirs.get_parameter(name))

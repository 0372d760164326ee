"""Who else is on the card changes nobody's image, and saves forwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from farm.spec.job import JobSpec
from farm.worker.engine import Counters, Engine, Rendered
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan

CPU = torch.device("cpu")
LONG = ", ".join(["a red apple on a blue background"] * 14)
"""More than one block of 77 tokens."""


def spec(prompt: str, seed: int, **changes: object) -> JobSpec:
    values: dict[str, object] = {"checkpoint": "demo", "width": 64, "height": 64, "steps": 6}
    return JobSpec.model_validate(values | changes | {"prompt": prompt, "seed": seed})


CROWD = [
    spec("a red apple", 1, sampler="Euler a", cfg_scale=3.0, steps=8),
    spec("a cat face", 2, sampler="Euler", cfg_scale=5.0),
    spec("a bus on a green background", 3, sampler="DPM++ 2M Karras", cfg_scale=1.0),
    spec("a penguin", 4, sampler="Euler a", cfg_scale=1.0, steps=3),
    spec("a lion", 5, sampler="DPM++ 2M Karras", cfg_scale=2.0, negative_prompt="blue", steps=5),
    spec("", 6, sampler="Euler", cfg_scale=3.0, steps=2),
    spec(LONG, 7, sampler="Euler a", cfg_scale=3.0),
    spec("a house", 8, sampler="DPM++ 2M Karras", cfg_scale=7.0, steps=1),
]


@pytest.fixture(scope="module")
def models() -> ModelCache:
    return ModelCache(scan([builtin_folder()]), by_name("cpu"), CPU)


@contextmanager
def engine(models: ModelCache) -> Iterator[Engine]:
    engine = Engine(models, by_name("cpu"), CPU)
    yield engine
    assert engine.stop()


def render(models: ModelCache, *specs: JobSpec) -> tuple[list[Rendered], Counters]:
    """All at once: they are there before the engine begins."""
    with engine(models) as running:
        futures = [running.submit(str(place), job) for place, job in enumerate(specs)]
        running.start()
        return [future.result(120) for future in futures], running.counters


@pytest.fixture(scope="module")
def together(models: ModelCache) -> tuple[list[Rendered], Counters]:
    return render(models, *CROWD)


@pytest.mark.parametrize("place", range(len(CROWD)))
def test_alone_or_among_seven_others_the_image_is_the_same(
    models: ModelCache, together: tuple[list[Rendered], Counters], place: int
) -> None:
    (alone,), _ = render(models, CROWD[place])
    crowded = together[0][place].image
    difference = np.abs(alone.image.astype(int) - crowded.astype(int))
    assert difference.max() <= 1
    assert alone.image.std() > 1


@pytest.mark.parametrize("place", [0, 2, 4, 6])
def test_a_strict_job_is_bit_equal(models: ModelCache, place: int) -> None:
    strict = CROWD[place].model_copy(update={"strict": True})
    (alone,), _ = render(models, strict)
    crowded, _ = render(models, *CROWD[:place], strict, *CROWD[place + 1 :])
    assert np.array_equal(alone.image, crowded[place].image)
    assert alone.stats.buckets == crowded[place].stats.buckets == (16,)


def test_a_crowd_takes_fewer_forwards(together: tuple[list[Rendered], Counters]) -> None:
    rendered, counters = together
    assert counters.forwards <= sum(job.steps for job in CROWD) / 2
    assert max(made.stats.mean_rows for made in rendered) > 8
    assert [made.stats.steps for made in rendered] == [job.steps for job in CROWD]


def test_every_image_of_the_crowd_is_another(together: tuple[list[Rendered], Counters]) -> None:
    assert len({made.image.tobytes() for made in together[0]}) == len(CROWD)

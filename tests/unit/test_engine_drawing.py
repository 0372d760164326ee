"""Noise that is drawn ahead: in order, once, not too much of it, and nobody else's harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import Unavailable
from farm.worker.engine import drawing
from farm.worker.engine.drawing import AHEAD, CHUNK, CHUNK_BYTES, Drawing
from farm.worker.engine.job import Job
from farm.worker.samplers import Draw
from farm.worker.samplers.program import FRESH
from tests.engine_bench import Bench
from tests.fake_models import spec


class Noise:
    """Counts instead of drawing."""

    def __init__(self) -> None:
        self.count = 0
        self.fails_at = -1
        self.fails_with: Exception = ValueError("no noise")

    def draw(self, wanted: Draw) -> torch.Tensor:
        if self.count == self.fails_at:
            raise self.fails_with
        self.count += 1
        return torch.tensor(float(self.count))


class Later:
    """Threads that work when they are told to."""

    def __init__(self) -> None:
        self.handed: list[Callable[[], None]] = []
        self.full = False

    def submit(self, work: Callable[[], None]) -> None:
        self.handed.append(work)
        if self.full:
            raise RuntimeError("can't start new thread")

    def work(self) -> None:
        for work in self.handed:
            work()
        self.handed.clear()


def drawn_for(noise: Any, wanted: list[Draw | None], size: int = 4) -> Drawing:
    return Drawing(noise, wanted, size=size)


def test_each_step_has_its_own_noise_however_often_it_asks() -> None:
    wanted = [FRESH, None, FRESH, FRESH, None, FRESH]
    made = drawn_for(Noise(), wanted)
    found = []
    for place, draw in enumerate(wanted):
        if draw:
            found.append(made.at(place).item())
            assert made.at(place).item() == found[-1]
        made.passed(place)
    assert found == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("size", "chunk"), [(4, CHUNK), (CHUNK_BYTES // 2, 2), (CHUNK_BYTES * 4, 1)]
)
def test_no_more_is_drawn_than_was_said(
    size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, noise = Later(), Noise()
    monkeypatch.setattr(drawing, "_threads", threads)
    made = drawn_for(noise, [FRESH] * 100, size)
    most = 0
    for place in range(100):
        threads.work()
        assert made.at(place).item() == place + 1
        made.passed(place)
        most = max(most, noise.count - place - 1)
        assert len(threads.handed) <= 1
    assert 1 <= most < AHEAD + chunk
    assert noise.count == 100


def test_work_that_was_refused_and_is_done_all_the_same_is_done_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, noise = Later(), Noise()
    threads.full = True
    monkeypatch.setattr(drawing, "_threads", threads)
    made = drawn_for(noise, [FRESH] * 3)
    for place in range(3):
        threads.work()
        assert made.at(place).item() == place + 1
        made.passed(place)
    assert noise.count == 3


def test_a_step_that_was_taken_does_not_fail_because_the_next_noise_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, noise = Later(), Noise()
    threads.full, noise.fails_at = True, 1
    monkeypatch.setattr(drawing, "_threads", threads)
    made = drawn_for(noise, [FRESH] * 3)
    assert made.at(0).item() == 1
    made.passed(0)
    for _ in range(2):
        with pytest.raises(ValueError, match="no noise"):
            made.at(1)


@pytest.mark.parametrize("sampler", ["DPM++ 2M SDE Karras", "DPM++ SDE", "Euler a", "DPM adaptive"])
@pytest.mark.parametrize("rng", ["CPU", "NV"])
def test_who_had_to_stand_aside_goes_on_with_the_noise_that_comes_next(
    sampler: str, rng: str
) -> None:
    job = spec("a", 1, sampler=sampler, steps=9, rng=rng, strict=True)
    straight = Bench(rows=2).render(job)[0].image
    bench = Bench(rows=2)
    (parked,) = bench.add(job)
    bench.run(turns=6)
    assert parked.slot
    stood = parked.slot.position
    urgent = Job("urgent", spec("b", 2, steps=5, width=128), order=7, rank=2)
    bench.core.jobs.add(urgent)
    while not urgent.future.done():
        bench.run(turns=1)
    # While the other is decoded there is time for a step.
    assert parked.slot.position <= stood + 1
    bench.run()
    assert np.array_equal(parked.future.result(0).image, straight)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("no noise"), pytest.raises(ValueError, match="no noise")),
        # Fewer rows, fewer checkpoints or streamed weights would not help: it is the host's.
        (MemoryError(), pytest.raises(Unavailable, match="memory for the noise")),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            pytest.raises(Unavailable, match="memory for the noise"),
        ),
    ],
    ids=["defect", "numpy", "torch"],
)
def test_noise_that_cannot_be_drawn_ends_its_own_job_only(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: Any
) -> None:
    bench = Bench()
    good, bad = bench.add(
        spec("a", 1, sampler="Euler a", steps=20), spec("b", 2, sampler="Euler a", steps=20)
    )
    bench.run(turns=6)
    assert bad.slot
    noise = Noise()
    noise.fails_at, noise.fails_with = 0, error
    monkeypatch.setattr(bad.slot._drawing, "_noise", noise)
    bench.models.idle = bench.models.in_host = 1
    bench.run()
    with told:
        bad.future.result(0)
    assert good.future.result(0).stats.buckets == (2, 4)
    assert bench.models.idle == 1


def test_who_was_cancelled_takes_no_noise_of_others() -> None:
    job = spec("a", 1, sampler="DPM++ 2M SDE Karras", steps=12)
    straight = Bench().render(job)[0].image
    bench = Bench()
    other, kept = bench.add(job.model_copy(update={"seed": 7}), job)
    bench.run(turns=6)
    bench.core.jobs.cancel(other.key)
    bench.run()
    assert abs(kept.future.result(0).image - straight).max() < 1e-5

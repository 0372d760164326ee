"""What a step costs beside the model."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from typing import Any

import torch

from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.memory import profiles
from tests.fake_models import FakeCheckpoint, FakeModels


def overhead(slots: int = 16) -> None:
    """What a step costs beside the model: a checkpoint that computes nothing to speak of.

    Seconds of the process, in which other processes do not count. What is there once, compiling
    programs and reading prompts, is in the difference between a long run and one half as long.
    """
    gc.freeze()  # as a worker does
    print(f"\nbeside the model at {slots} slots, ms of CPU a step: of the engine's thread, of all")
    print("  sampler                   steady             of 150 steps")
    for sampler in ("Euler", "Euler a", "DPM++ 2M SDE Karras"):
        _beside(sampler, slots, 10)
        half, whole = (_beside(sampler, slots, steps) for steps in (75, 150))
        steady = [1000 * (long - short) / 75 for short, long in zip(half, whole, strict=True)]
        every = [1000 * seconds / 150 for seconds in whole]
        columns = "   ".join(f"{own:6.2f} {both:6.2f}" for own, both in (steady, every))
        print(f"  {sampler:22} {columns}")


def _beside(sampler: str, slots: int, steps: int) -> tuple[float, float]:
    """Seconds of CPU that so many images of so many steps take beside the model: of the engine's
    thread, and of all of the process's."""
    fake = FakeCheckpoint("fake")
    spent = [0.0]
    predict = fake.predict

    def measured(*args: Any, **options: Any) -> Any:
        began = time.thread_time()
        made = predict(*args, **options)
        spent[0] += time.thread_time() - began
        return made

    fake.predict = measured  # type: ignore[method-assign]
    profile = replace(profiles.by_name("cpu"), buckets=(slots * 2,), max_rows=slots * 2)
    profile = replace(profile, rows_at_1024=10**6)
    engine = Engine(FakeModels(fake), profile, torch.device("cpu"))  # type: ignore[arg-type]
    specs = [
        JobSpec(
            checkpoint="fake",
            prompt=str(n),
            width=64,
            height=64,
            steps=steps,
            seed=n,
            sampler=sampler,
        )
        for n in range(slots)
    ]
    began = time.process_time()
    futures = [engine.submit(str(n), spec) for n, spec in enumerate(specs)]
    with engine:
        for future in futures:
            future.result()
        # As a thread begins with no seconds, this is all it has had.
        own = engine._loop.between(time.thread_time)
        return own - spent[0], time.process_time() - began - spent[0]

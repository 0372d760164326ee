"""A latent that overflows is begun anew in a higher precision: that image alone, and remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import DoesNotFit, NumericFailure
from farm.worker.engine.job import Job
from tests.engine_bench import Bench, alone
from tests.fake_models import spec

HOT = "a burning curse"
OTHERS = [spec("a cat", 1), spec("a bus", 2, steps=6), spec("a dog", 3)]


def bench(needed: int, rungs: int = 2) -> Bench:
    found = Bench()
    found.checkpoint.rungs = rungs
    found.checkpoint.overflowing[HOT] = needed
    return found


def image_of(job: Job) -> object:
    return job.future.result(0).image


def check_others(jobs: list[Job]) -> None:
    for given, job in zip(OTHERS, jobs, strict=True):
        np.testing.assert_allclose(image_of(job), alone(given), rtol=0, atol=1e-5)
        assert job.future.result(0).stats.precision is None


@pytest.mark.parametrize("needed", [1, 2])
def test_the_image_is_saved_and_says_how(needed: int) -> None:
    found = bench(needed)
    *others, hot = found.add(*OTHERS, spec(HOT, 9, steps=5))
    found.run()
    np.testing.assert_allclose(image_of(hot), alone(spec(HOT, 9, steps=5)), rtol=0, atol=1e-5)
    assert hot.future.result(0).stats.precision == f"precision {needed}"
    assert set(found.checkpoint.lifts) == set(range(needed + 1))
    check_others(others)


def test_beyond_the_last_precision_it_fails_and_says_so() -> None:
    found = bench(needed=3)
    *others, hot = found.add(*OTHERS, spec(HOT, 9))
    found.run()
    error = hot.future.exception(0)
    assert isinstance(error, NumericFailure)
    assert "in every precision up to precision 2" in error.message
    check_others(others)


def test_lifted_it_takes_no_more_memory_than_others() -> None:
    found = bench(needed=1)
    found.add(*OTHERS, spec(HOT, 9))
    found.run()
    rows = [
        rows
        for rows, lift in zip(found.checkpoint.forwards, found.checkpoint.lifts, strict=True)
        if lift
    ]
    assert set(rows) == {1}


def test_after_two_rescues_others_of_the_checkpoint_begin_there() -> None:
    found = bench(needed=1)
    for seed in (1, 2):
        found.add(spec(HOT, seed, steps=2))
        found.run()
    found.checkpoint.lifts.clear()
    third, strict = found.add(spec(HOT, 3, steps=2), spec("a cat", 4, steps=2, strict=True))
    found.run()
    assert third.future.result(0).stats.precision == "precision 1"
    # two steps of two rows each, none of them lost to an overflow; the strict one is untouched
    assert found.checkpoint.lifts.count(1) == 4
    assert strict.future.result(0).stats.precision is None


def test_another_file_of_the_same_name_is_not_thought_to_overflow() -> None:
    found = bench(needed=1)
    for seed in (1, 2):
        found.add(spec(HOT, seed, steps=2))
        found.run()
    found.checkpoint.identity = "fake", "copied over"
    (cool,) = found.add(spec("a cat", 3, steps=2))
    found.run()
    assert cool.future.result(0).stats.precision is None


def test_a_cancelled_rescue_leaves_nothing() -> None:
    found = bench(needed=1)
    (hot,) = found.add(spec(HOT, 9, steps=5))
    found.run(turns=6)
    found.core.jobs.cancel(hot.key)
    found.run()
    assert not found.core.jobs
    assert hot.future.exception(0) is not None


def test_without_memory_for_a_higher_precision_the_size_fits_all_others_still() -> None:
    found = bench(needed=1)

    def fault(what: str, _: Any) -> None:
        if what == "predict" and found.checkpoint.lift:
            raise torch.OutOfMemoryError("CUDA out of memory")

    found.checkpoint.fault = fault
    *others, hot = found.add(*OTHERS, spec(HOT, 9, steps=1))
    found.run()
    assert isinstance(hot.future.exception(0), DoesNotFit)
    check_others(others)
    (later,) = found.add(OTHERS[0])
    found.run()
    check_others([later, *others[1:]])

"""One job's misfortune stays its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import CheckpointError, DoesNotFit, FarmError, NumericFailure
from farm.spec.measurement import Measurement
from farm.worker.engine.job import Job
from farm.worker.engine.requests import Decode
from farm.worker.engine.slot import Slot
from farm.worker.memory.experience import Experience
from tests.engine_bench import Bench, alone
from tests.fake_models import FakeCheckpoint, mean_of, spec

GOOD = [spec("a cat", 1, sampler="Euler a"), spec("a bus", 2, steps=6), spec("a dog", 3)]
BAD = spec("a curse", 4, steps=5)


def check_good(bench: Bench, jobs: list[Job]) -> None:
    for given, job in zip(GOOD, jobs, strict=True):
        image = job.future.result(0).image
        np.testing.assert_allclose(image, alone(given), rtol=0, atol=1e-5)
    assert not bench.core.jobs


def error_of(job: Job) -> Exception:
    error = job.future.exception(0)
    assert isinstance(error, Exception)
    return error


def fault(when: str, raising: Callable[[], Exception], *, on: Callable[[Any], bool]) -> Any:
    def check(what: str, seen: Any) -> None:
        if what == when and on(seen):
            raise raising()

    return check


def cursed(means: list[float]) -> bool:
    return any(abs(mean - mean_of(BAD.prompt)) < 1e-6 for mean in means)


def test_nan_fails_its_own_job_and_names_the_step() -> None:
    bench = Bench()
    bench.checkpoint.poisoned.add(BAD.prompt)
    *good, bad = bench.add(*GOOD, BAD)
    bench.run()
    error = error_of(bad)
    assert isinstance(error, NumericFailure)
    assert "step 1 of 5" in error.message
    assert error.field == "checkpoint"
    assert error.remedy
    check_good(bench, good)


def test_nan_is_noticed_one_step_late_at_most() -> None:
    bench = Bench()
    (bad,) = bench.add(spec(BAD.prompt, steps=20, cfg_scale=1.0))
    bench.run(turns=2 + 6)
    bench.checkpoint.poisoned.add(BAD.prompt)
    bench.run()
    assert "step 7 of 20" in str(error_of(bad))
    assert len(bench.checkpoint.forwards) == 8


def test_nan_in_the_last_step_is_no_image() -> None:
    bench = Bench()
    bench.checkpoint.poisoned.add(BAD.prompt)
    (bad,) = bench.add(spec(BAD.prompt, steps=1))
    bench.run()
    assert "step 1 of 1" in str(error_of(bad))
    assert bench.checkpoint.decoded == 0


def test_an_error_in_a_shared_forward_fails_only_the_guilty() -> None:
    bench = Bench()
    bench.checkpoint.fault = fault("predict", lambda: RuntimeError("cursed"), on=cursed)
    *good, bad = bench.add(*GOOD, BAD)
    bench.run()
    assert str(error_of(bad)) == "cursed"
    check_good(bench, good)


def test_a_job_that_cannot_decide_how_to_go_on_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(slot: Slot) -> None:
        if slot.request.seed == BAD.seed:
            raise OUT

    monkeypatch.setattr(Slot, "settle", settle)
    bench = Bench()
    *good, bad = bench.add(*GOOD, BAD)
    bench.run()
    assert isinstance(error_of(bad), DoesNotFit)
    check_good(bench, good)


def test_an_error_that_passes_costs_nobody_anything() -> None:
    raised: list[int] = []

    def once_in_the_third(_: Any) -> bool:
        raised.append(1)
        return len(raised) == 3

    bench = Bench()
    bench.checkpoint.fault = fault("predict", lambda: RuntimeError("blip"), on=once_in_the_third)
    good = bench.add(*GOOD)
    bench.run()
    check_good(bench, good)


@pytest.mark.parametrize(
    "raising",
    [
        pytest.param(lambda: torch.OutOfMemoryError("CUDA out of memory"), id="card"),
        pytest.param(MemoryError, id="python"),
        pytest.param(
            lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            id="machine",
        ),
        pytest.param(
            lambda: RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"
            ),
            id="cublas",
        ),
    ],
)
def test_out_of_memory_halves_the_rows_and_is_remembered(raising: Any) -> None:
    tried: list[int] = []

    def too_many(means: list[float]) -> bool:
        tried.append(len(means))
        return len(means) > 3

    bench = Bench()
    bench.checkpoint.fault = fault("predict", raising, on=too_many)
    good = bench.add(*GOOD)
    bench.run()
    check_good(bench, good)
    assert [rows for rows in tried if rows > 3] == [8, 4]
    bench.add(*GOOD)
    bench.run()
    assert [rows for rows in tried if rows > 3] == [8, 4]


def test_with_room_for_one_row_guidance_takes_two_forwards() -> None:
    bench = Bench()
    bench.checkpoint.fault = fault("predict", MemoryError, on=lambda means: len(means) > 1)
    good = bench.add(*GOOD)
    bench.run()
    check_good(bench, good)
    assert set(bench.checkpoint.forwards) == {1}
    assert good[0].future.result().stats.forwards == 2 * GOOD[0].steps


def test_without_room_for_one_row_the_job_does_not_fit() -> None:
    bench = Bench()
    large = spec(BAD.prompt, width=128)
    bench.checkpoint.fault = fault("predict", MemoryError, on=cursed)
    *good, bad = bench.add(*GOOD, large)
    bench.run()
    error = error_of(bad)
    assert isinstance(error, DoesNotFit)
    assert (error.field, error.value) == ("width", "128x64")
    assert error.remedy
    check_good(bench, good)


def test_a_size_that_cannot_fit_is_refused_before_it_runs() -> None:
    bench = Bench()
    *good, bad = bench.add(*GOOD, spec(BAD.prompt, width=4096, height=4096))
    bench.run()
    assert isinstance(error_of(bad), DoesNotFit)
    check_good(bench, good)


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize(
    ("raising", "expected"),
    [
        (lambda: torch.OutOfMemoryError("full"), DoesNotFit),
        (lambda: NumericFailure("The image is not finite."), NumericFailure),
        (lambda: ValueError("odd"), ValueError),
    ],
)
def test_a_failure_of_one_request_ends_one_job(
    stage: str, raising: Callable[[], Exception], expected: type[Exception]
) -> None:
    bench = Bench()
    *good, bad = bench.add(*GOOD, BAD)

    def the_bad_one(seen: Any) -> bool:
        if isinstance(bad.request, Decode):
            return seen is bad.request.latent.value
        return seen is BAD.prompt

    bench.checkpoint.fault = fault(stage, raising, on=the_bad_one)
    bench.run()
    assert isinstance(error_of(bad), expected)
    check_good(bench, good)


@pytest.mark.parametrize(
    ("raising", "expected"),
    [(None, CheckpointError), (lambda: OSError("the disk is gone"), OSError)],
)
def test_a_bad_checkpoint_fails_its_own_jobs(
    raising: Callable[[], Exception] | None, expected: type[Exception]
) -> None:
    bench = Bench()
    get = bench.models.get

    def failing(name: str) -> FakeCheckpoint:
        if raising and name == "gone":
            raise raising()
        return get(name)

    bench.models.get = failing
    gone = bench.add(spec(checkpoint="gone"), spec(checkpoint="gone", seed=2))
    good = bench.add(*GOOD)
    bench.run()
    assert all(isinstance(error_of(job), expected) for job in gone)
    check_good(bench, good)


def test_an_unusable_noise_schedule_fails_its_own_jobs() -> None:
    broken = FakeCheckpoint("broken")
    broken.alphas_cumprod = [0.5, 0.9]
    bench = Bench(FakeCheckpoint("fake"), broken)
    (bad,) = bench.add(spec(checkpoint="broken"))
    good = bench.add(*GOOD)
    bench.run()
    assert isinstance(error_of(bad), FarmError)
    check_good(bench, good)


def test_a_cancelled_job_leaves_the_others_alone() -> None:
    bench = Bench()
    *good, bad = bench.add(*GOOD, BAD)
    bench.run(turns=8)
    assert bad.slot is not None
    bench.core.jobs.cancel(bad.key)
    bench.core.jobs.cancel("nobody")
    bench.run()
    assert type(error_of(bad)).__name__ == "Cancelled"
    check_good(bench, good)


OUT = torch.OutOfMemoryError("CUDA out of memory")
STYLED = spec(f"{BAD.prompt} <lora:style:0.8>", 4, steps=5)


class Ladder:
    """A bench whose memory runs out at one kind of request so many times, and who gives what up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, where: str, times: int) -> None:
        self.bench = Bench(rows=2)
        self.bench.models.idle = 1
        self.bench.checkpoint.streamable = True
        self.left = times
        self.tried = 0
        if where == "load":
            get = self.bench.models.get
            self.bench.models.get = lambda name: (
                get(name) if name in self.resident else self.load(get, name)
            )
        elif where == "open":
            monkeypatch.setattr("farm.worker.engine.denoiser.Slot", self.slot)
        else:
            self.bench.checkpoint.fault = lambda what, _: self.run_out() if what == where else None

    @property
    def resident(self) -> tuple[str, ...]:
        found: tuple[str, ...] = self.bench.models.resident
        return found

    def run_out(self) -> None:
        self.tried += 1
        if self.left:
            self.left -= 1
            raise OUT

    def load(self, get: Any, name: str) -> Any:
        self.run_out()
        return get(name)

    def slot(self, *args: Any) -> Slot:
        self.run_out()
        return Slot(*args)

    @property
    def gave_up(self) -> tuple[bool, bool]:
        """Whether checkpoints that nobody uses left, and the weights of the one in use."""
        return self.bench.models.idle < 1, self.bench.checkpoint.mode == "streamed"


@pytest.mark.parametrize(
    ("where", "times", "gave_up"),
    [
        (where, *case)
        for where in ("load", "encode", "wear", "open", "predict", "decode")
        for case in ((0, (False, False)), (1, (True, False)), (2, (True, True)))
        # What is being loaded has no weights yet that could leave.
        if (where, case[0]) != ("load", 2)
    ],
)
def test_where_memory_runs_out_one_thing_is_given_up_after_the_other(
    monkeypatch: pytest.MonkeyPatch, where: str, times: int, gave_up: tuple[bool, bool]
) -> None:
    # A forward of guided rows is tried with one row, and a picture with nothing recorded, before
    # anything else is given up.
    ladder = Ladder(monkeypatch, where, times + (where in ("predict", "decode") and times > 0))
    asked = STYLED if where == "wear" else GOOD[0]
    (image,) = ladder.bench.render(asked)
    np.testing.assert_allclose(image.image, alone(asked), rtol=0, atol=1e-5)
    assert ladder.gave_up == gave_up
    assert ladder.left == 0


@pytest.mark.parametrize("where", ["load", "encode", "wear", "open", "predict", "decode"])
def test_at_the_end_of_the_ladder_only_the_one_job_fails(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    ladder = Ladder(monkeypatch, where, 2**30)
    asked = STYLED if where == "wear" else GOOD[0]
    (bad,) = ladder.bench.add(asked)
    ladder.bench.run()
    assert isinstance(error_of(bad), DoesNotFit)
    assert not ladder.bench.core.jobs
    ladder.left = 0
    other = spec("a dog", 3, width=128)
    (image,) = ladder.bench.render(other)
    np.testing.assert_allclose(image.image, alone(other), rtol=0, atol=1e-5)


def test_a_size_without_room_for_a_row_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ladder = Ladder(monkeypatch, "predict", 2**30)
    # Two rows, one, one without others; and with streamed weights, which leave room, both anew.
    for tried in (5, 5):
        (bad,) = ladder.bench.add(GOOD[0])
        ladder.bench.run()
        assert isinstance(error_of(bad), DoesNotFit)
        assert ladder.tried == tried


def test_the_next_life_begins_where_this_one_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Measurement] = []
    bench = Bench(experience=Experience(tell=told.append))
    bench.checkpoint.fault = fault("predict", lambda: OUT, on=lambda means: len(means) > 2)
    bench.render(*GOOD)
    again = Bench(experience=Experience(told))
    again.checkpoint.fault = fault("predict", AssertionError, on=lambda m: len(m) > 2)
    jobs = again.add(*GOOD)
    again.run()
    check_good(again, jobs)

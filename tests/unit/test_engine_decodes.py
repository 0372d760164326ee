"""What is decoded and encoded while the next steps run, and is booked when it is done."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import Cancelled, DoesNotFit, NumericFailure, Unavailable
from farm.worker.engine import Engine
from farm.worker.engine.failures import DeviceLost
from farm.worker.engine.job import Job
from tests.conftest import eventually
from tests.engine_bench import Bench, alone
from tests.fake_models import FakeCheckpoint, Gate, profile, spec

SHORT, LONG = spec("a cat", 1, steps=2), spec("a bus", 2, steps=30)


class Queue:
    """Stands in for the queue of a device: work in it is done when the test says so."""

    def __init__(self) -> None:
        self.held = True
        self.waits = 0
        self.lost: Exception | None = None


class Watch:
    """A stopwatch in that queue."""

    queue: Queue

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def stop(self) -> None:
        pass

    @property
    def passed(self) -> bool:
        if self.queue.lost:
            raise self.queue.lost
        return not self.queue.held

    def seconds(self) -> float:
        self.queue.waits += self.queue.held
        self.queue.held = False
        return 0.25


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    queue = Queue()
    watch = type("QueueWatch", (Watch,), {"queue": queue})
    monkeypatch.setattr("farm.worker.engine.decodes.Stopwatch", watch)
    monkeypatch.setattr("farm.worker.engine.encodes.Stopwatch", watch)
    return queue


def decoding(bench: Bench, *specs: Any) -> list[Job]:
    """Jobs of which the first is being decoded while the others still have steps to do."""
    jobs = bench.add(*specs)
    for _ in range(1000):
        bench.core.turn()
        if bench.checkpoint.decoded:
            return jobs
    raise AssertionError("nothing is ever decoded")


def check_alone(job: Job, rows: int = 16) -> None:
    np.testing.assert_allclose(
        job.future.result(0).image, alone(job.spec, rows=rows), rtol=0, atol=1e-5
    )


def test_steps_go_on_while_a_latent_is_decoded(queue: Queue) -> None:
    bench = Bench()
    short, long = decoding(bench, SHORT, LONG)
    before = len(bench.checkpoint.forwards)
    bench.run(turns=10)
    assert len(bench.checkpoint.forwards) == before + 10
    assert not short.future.done()
    queue.held = False
    bench.run(turns=1)
    assert short.future.done()
    bench.run()
    assert queue.waits == 0
    check_alone(short)
    check_alone(long)
    assert short.future.result(0).stats.decode_seconds == 0.25


def test_with_no_step_to_do_it_is_waited_for(queue: Queue) -> None:
    bench = Bench()
    bench.render(SHORT)
    assert queue.waits == 1


def test_nobody_waits_for_a_text_to_know_what_it_took(queue: Queue) -> None:
    bench = Bench()
    (job,) = bench.add(spec("a cat", steps=9, cfg_scale=1.0))
    bench.run(turns=5)
    assert len(bench.checkpoint.forwards) > 2
    assert (queue.waits, job.ledger.encode_seconds) == (0, 0.0)
    queue.held = False
    bench.run()
    assert job.future.result(0).stats.encode_seconds == 0.25


def test_a_text_s_time_is_booked_though_its_job_is_cancelled(queue: Queue) -> None:
    bench = Bench()
    (job,) = bench.add(spec("a cat", steps=9, cfg_scale=1.0))
    bench.run(turns=4)
    bench.core.jobs.cancel(job.key)
    before = bench.core.pulse.counters.busy_seconds
    bench.core.rest()
    assert queue.waits == 1
    assert bench.core.pulse.counters.busy_seconds >= before + 0.25


def test_one_is_decoded_at_a_time_and_the_oldest_first(queue: Queue) -> None:
    bench = Bench()
    first, second, _ = decoding(bench, SHORT, spec("a dog", 3, steps=2), LONG)
    bench.run(turns=5)
    assert bench.checkpoint.decoded == 1
    queue.held = False
    bench.run(turns=1)
    assert (first.future.done(), second.future.done()) == (True, False)
    assert bench.checkpoint.decoded == 2
    bench.run()
    check_alone(second)


def test_cancelled_while_it_is_decoded_it_is_gone_at_once(queue: Queue) -> None:
    bench = Bench()
    short, long = decoding(bench, SHORT, LONG)
    bench.core.jobs.cancel(short.key)
    assert isinstance(short.future.exception(0), Cancelled)
    bench.run(turns=3)
    queue.held = False
    bench.run()
    check_alone(long)


def test_a_cancelled_last_job_leaves_no_checkpoint_in_use(queue: Queue) -> None:
    bench = Bench()
    with using(bench) as used:
        (short,) = decoding(bench, SHORT)
        assert used == [1]
        bench.core.jobs.cancel(short.key)
        bench.core.rest()
        assert used == [0]


def test_its_checkpoint_stays_in_use_until_the_pixels_are_home(queue: Queue) -> None:
    bench = Bench()
    with using(bench) as used:
        decoding(bench, SHORT, LONG)
        bench.run(turns=3)
        assert used == [1]
        queue.held = False
        bench.run()
        assert used == [0]


@contextmanager
def using(bench: Bench) -> Iterator[list[int]]:
    """How many uses of a checkpoint are open."""
    used, use = [0], bench.models.use

    @contextmanager
    def counted(name: str) -> Iterator[FakeCheckpoint]:
        used[0] += 1
        try:
            with use(name) as checkpoint:
                yield checkpoint
        finally:
            used[0] -= 1

    bench.models.use = counted
    yield used
    bench.models.use = use


def test_a_checkpoint_that_may_have_to_leave_is_loaded_after_it(queue: Queue) -> None:
    bench = Bench(FakeCheckpoint("fake"), FakeCheckpoint("other"))
    get = bench.models.get
    with using(bench) as used:
        seen: list[int] = []

        def watched(name: str) -> FakeCheckpoint:
            if name == "other":
                seen.append(used[0])
            return get(name)

        bench.models.get = watched
        bench.render(SHORT, spec(checkpoint="other"))
    assert seen[0] == 0


def test_a_checkpoint_leaves_only_when_all_its_finished_latents_are_decoded(queue: Queue) -> None:
    bench = Bench(FakeCheckpoint("fake"), FakeCheckpoint("other"))
    bench.render(SHORT, spec("a dog", 3, steps=2), spec(checkpoint="other"))
    assert bench.models.loads == ["fake", "other"]


def test_an_overflow_noticed_late_is_decoded_again_for_that_image_alone(queue: Queue) -> None:
    bench = Bench()
    bench.checkpoint.good_drafts = False
    short, long = decoding(bench, SHORT, LONG)
    bench.checkpoint.good_drafts = True
    bench.run(turns=2)
    queue.held = False
    bench.run()
    assert bench.checkpoint.decoded_again == 1
    check_alone(short)
    check_alone(long)


def test_an_overflow_in_every_precision_fails_that_image_alone(queue: Queue) -> None:
    bench = Bench()
    bench.checkpoint.good_drafts = False

    def fault(what: str, _: Any) -> None:
        if what == "decode again":
            raise NumericFailure("even in float32")

    bench.checkpoint.fault = fault
    short, long = decoding(bench, SHORT, LONG)
    bench.checkpoint.good_drafts = True
    queue.held = False
    bench.run()
    assert isinstance(short.future.exception(0), NumericFailure)
    check_alone(long)


def test_a_cancelled_overflow_is_not_decoded_again(queue: Queue) -> None:
    bench = Bench()
    bench.checkpoint.good_drafts = False
    short, _ = decoding(bench, SHORT, LONG)
    bench.checkpoint.good_drafts = True
    bench.core.jobs.cancel(short.key)
    queue.held = False
    bench.run()
    assert bench.checkpoint.decoded_again == 0


def test_a_device_lost_meanwhile_is_no_fault_of_the_job(queue: Queue) -> None:
    bench = Bench()
    short, _ = decoding(bench, SHORT, LONG)
    queue.lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(DeviceLost):
        bench.core.turn()
    assert not short.future.done()


def test_stopped_meanwhile_jobs_end_at_once_and_nothing_stays_in_use(queue: Queue) -> None:
    bench, gate = Bench(), Gate()

    def fault(what: str, _: Any) -> None:
        if what == "predict" and bench.checkpoint.decoded:
            gate()

    bench.checkpoint.fault = fault
    with using(bench) as used:
        engine = Engine(bench.models, profile(16), torch.device("cpu"))
        engine.start()
        short = engine.submit("short", SHORT)
        long = engine.submit("long", spec("a bus", 2, steps=150))
        assert gate.reached.wait(60)
        stopping = threading.Thread(target=engine.stop)
        stopping.start()
        eventually(lambda: engine._closed)
        gate.open()
        stopping.join(60)
        assert isinstance(short.exception(0), Unavailable)
        assert isinstance(long.exception(0), Unavailable)
        assert used == [0]


class Sides:
    """Stands in for a card's streams: says beside what a latent is decoded, and when not."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now: Any = None
        self.used: list[bool] = []
        bench.core._decodes._side = self  # type: ignore[assignment]
        monkeypatch.setattr("farm.worker.engine.decodes._on", self._on)

    @contextmanager
    def _on(self, side: Any) -> Iterator[None]:
        self.now = side
        try:
            yield
        finally:
            self.now = None


@pytest.mark.parametrize(("memory", "beside"), [(16, True), (2, False)])
def test_where_memory_is_planned_for_both_they_run_side_by_side(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, memory: int, beside: bool
) -> None:
    bench = Bench()
    sides = Sides(bench, monkeypatch)
    bench.core._limits.beside = lambda pixels, *shape: memory > 8  # type: ignore[method-assign]
    seen: list[bool] = []

    def fault(what: str, _: Any) -> None:
        if what == "decode":
            seen.append(bool(sides.now))

    bench.checkpoint.fault = fault
    decoding(bench, SHORT, LONG)
    assert seen == [beside]
    queue.held = False
    bench.run()
    spans = [span.name for span in bench.core.pulse.timeline.spans() if span.track == "beside"]
    assert spans == ["decode"] * 2 * beside


def test_out_of_memory_beside_a_decoding_waits_for_it_and_keeps_the_rows(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    sides = Sides(bench, monkeypatch)
    short, long = decoding(bench, SHORT, LONG)
    tried: list[int] = []

    def fault(what: str, means: Any) -> None:
        if what == "predict":
            tried.append(len(means))
            if not short.future.done():
                raise torch.OutOfMemoryError("CUDA out of memory")

    bench.checkpoint.fault = fault
    bench.run()
    assert queue.waits > 0
    assert set(tried) == {2}
    check_alone(short)
    check_alone(long)
    assert bench.core._decodes._side is not sides


def test_out_of_memory_in_a_decoding_beside_moves_it_between(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    sides = Sides(bench, monkeypatch)

    def fault(what: str, _: Any) -> None:
        if what == "decode" and sides.now:
            raise torch.OutOfMemoryError("CUDA out of memory")

    bench.checkpoint.fault = fault
    queue.held = False
    bench.add(SHORT, LONG)
    bench.run()
    for job in bench.jobs:
        check_alone(job)
    assert bench.core._decodes._side is None


def test_without_memory_for_any_decoding_the_job_does_not_fit(queue: Queue) -> None:
    bench = Bench()

    def fault(what: str, _: Any) -> None:
        if what == "decode":
            raise torch.OutOfMemoryError("CUDA out of memory")

    bench.checkpoint.fault = fault
    (short,) = bench.add(SHORT)
    bench.run()
    assert isinstance(short.future.exception(0), DoesNotFit)
    assert not bench.core._decodes.busy


@pytest.mark.parametrize("recorded", [True, False])
def test_what_only_makes_forwards_quicker_goes_before_a_picture_is_decoded_in_tiles(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    bench = Bench()
    bench.models.recorded, bench.models.idle = recorded, 1
    queue.held = False
    tiled: list[bool] = []
    draft = bench.checkpoint.draft

    def drafted(latent: Any, *, whole: bool = False, strict: bool = False) -> Any:
        tiled.append(not whole)
        if bench.models.recorded or (not recorded and len(tiled) == 1):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draft(latent, whole=whole)

    monkeypatch.setattr(bench.checkpoint, "draft", drafted)
    bench.add(SHORT, LONG)
    bench.run()
    for job in bench.jobs:
        check_alone(job)
    # The first try may not turn to tiles; nor may the next picture, which is tried afresh.
    assert tiled == [False, True, False]
    assert not bench.models.recorded
    assert bench.models.idle == 1


def test_so_it_is_in_a_higher_precision() -> None:
    bench = Bench()
    bench.checkpoint.good_drafts = False
    bench.models.recorded, bench.models.idle = True, 1

    def short(what: str, _: Any) -> None:
        if what == "decode again" and bench.models.recorded:
            raise torch.OutOfMemoryError("CUDA out of memory")

    bench.checkpoint.fault = short
    job, other = bench.add(SHORT, LONG)
    bench.run()
    check_alone(job)
    check_alone(other)
    assert bench.checkpoint.wholes == [True, False, True]
    assert bench.models.idle == 1

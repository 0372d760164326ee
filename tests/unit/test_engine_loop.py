"""The engine as others use it: from any thread, by futures."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import Future, wait
from itertools import count
from typing import Any, cast

import numpy as np
import pytest
import torch

from farm.errors import Cancelled, Conflict, Unavailable
from farm.worker.engine import Engine
from farm.worker.engine.rows import Rows
from farm.worker.models.cache import ModelCache
from tests.conftest import eventually
from tests.engine_bench import alone
from tests.fake_models import FakeCheckpoint, FakeModels, Gate, profile, spec

TIMEOUT = 60


class Running:
    """An engine whose forwards wait at a gate, once a test asks them to."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.checkpoint = FakeCheckpoint("fake")
        models = cast(ModelCache, FakeModels(self.checkpoint))
        self.engine = Engine(models, profile(16), torch.device("cpu"))

    def hold(self, what: str = "predict") -> None:
        self.checkpoint.fault = lambda doing, _: self.gate() if doing == what else None


@pytest.fixture
def running() -> Any:
    running = Running()
    yield running
    running.gate.open()
    assert running.engine.stop()


def test_jobs_from_many_threads_all_get_their_image(running: Running) -> None:
    running.engine.start()
    futures: list[Any] = []

    def client(first: int) -> None:
        for seed in range(first, first + 5):
            futures.append(running.engine.submit(f"job-{seed}", spec(seed=seed)))

    clients = [threading.Thread(target=client, args=[first]) for first in (0, 100, 200)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    images = {future.result(TIMEOUT).image.tobytes() for future in futures}
    assert len(images) == 15


def test_jobs_submitted_before_the_start_are_done_after_it(running: Running) -> None:
    future = running.engine.submit("early", spec())
    running.engine.start()
    assert future.result(TIMEOUT).stats.steps == 4


def test_a_job_that_arrives_in_mid_flight_shares_the_next_forward(running: Running) -> None:
    running.hold()
    running.engine.start()
    first = running.engine.submit("first", spec(seed=1, steps=10))
    assert running.gate.reached.wait(TIMEOUT)
    second = running.engine.submit("second", spec(seed=2, steps=3))
    running.gate.open()
    wait([first, second], TIMEOUT)
    assert running.checkpoint.forwards == [2, 4, 4, 4, 2, 2, 2, 2, 2, 2]
    assert second.result().stats.mean_rows == 4
    np.testing.assert_allclose(second.result().image, alone(spec(seed=2, steps=3)), atol=1e-5)


def test_cancel_takes_effect_at_the_next_step(running: Running) -> None:
    running.hold()
    running.engine.start()
    doomed = running.engine.submit("doomed", spec(steps=100))
    kept = running.engine.submit("kept", spec(seed=2))
    assert running.gate.reached.wait(TIMEOUT)
    running.engine.cancel("doomed")
    running.engine.cancel("unknown")
    running.gate.open()
    with pytest.raises(Cancelled, match="doomed"):
        doomed.result(TIMEOUT)
    assert kept.result(TIMEOUT).stats.steps == 4
    assert len(running.checkpoint.forwards) <= 6


def test_a_future_cannot_be_cancelled_behind_the_engine_s_back(running: Running) -> None:
    future = running.engine.submit("one", spec())
    assert not future.cancel()
    running.engine.start()
    assert future.result(TIMEOUT).stats.steps == 4


def test_a_key_is_free_again_when_its_job_is_done(running: Running) -> None:
    running.hold()
    running.engine.start()
    first = running.engine.submit("twice", spec())
    with pytest.raises(Conflict) as refused:
        running.engine.submit("twice", spec())
    assert (refused.value.field, refused.value.value) == ("key", "twice")
    running.gate.open()
    first.result(TIMEOUT)
    assert running.engine.submit("twice", spec()).result(TIMEOUT).stats.steps == 4


def submit_for_ever(engine: Engine) -> None:
    for serial in count():
        engine.submit(f"late-{serial}", spec())


def test_stop_ends_what_is_not_done_in_time(running: Running) -> None:
    running.hold()
    running.engine.start()
    endless = running.engine.submit("endless", spec(steps=150))
    assert running.gate.reached.wait(TIMEOUT)
    stopped: list[bool] = []
    stopper = threading.Thread(target=lambda: stopped.append(running.engine.stop(0.0)))
    stopper.start()
    with pytest.raises(Unavailable):
        submit_for_ever(running.engine)
    running.gate.open()
    stopper.join(TIMEOUT)
    assert stopped == [True]
    assert isinstance(endless.exception(0), Unavailable)


def test_stop_waits_for_what_is_done_in_time(running: Running) -> None:
    running.engine.start()
    futures = [running.engine.submit(str(seed), spec(seed=seed)) for seed in range(5)]
    assert running.engine.stop(TIMEOUT)
    assert all(future.result(0).stats.steps == 4 for future in futures)


def test_stop_without_a_start_ends_the_jobs_too(running: Running) -> None:
    future = running.engine.submit("one", spec())
    assert running.engine.stop()
    assert isinstance(future.exception(0), Unavailable)


def test_a_defect_of_the_engine_ends_its_jobs_but_not_the_engine(running: Running) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a defect")

    batcher: Any = running.engine._core._batcher
    decide, batcher.decide = batcher.decide, broken
    running.engine.start()
    victim = running.engine.submit("victim", spec())
    assert isinstance(victim.exception(TIMEOUT), ZeroDivisionError)
    batcher.decide = decide
    assert running.engine.submit("next", spec()).result(TIMEOUT).stats.steps == 4


def test_a_device_lost_where_no_job_is_at_work_ends_the_engine_too(running: Running) -> None:
    lost: list[BaseException] = []

    def rest() -> None:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    core: Any = running.engine._core
    core.rest = rest
    late: list[Future[Any]] = []

    def on_lost(error: BaseException) -> None:
        lost.append(error)
        late.append(running.engine.submit("meanwhile", spec()))

    running.engine._loop.on_lost = on_lost
    running.engine.start()
    eventually(lambda: not running.engine._loop.alive)
    assert lost
    # Who came when it was lost and not yet closed gets an answer too.
    assert isinstance(late[0].exception(TIMEOUT), Unavailable)
    with pytest.raises(Unavailable):
        running.engine.submit("late", spec())


@pytest.mark.parametrize("what", ["encode", "predict", "decode"])
def test_the_heartbeat_shows_a_call_that_hangs(running: Running, what: str) -> None:
    running.hold(what)
    running.engine.start()
    future = running.engine.submit("one", spec())
    assert running.gate.reached.wait(TIMEOUT)
    beat = running.engine.heartbeat()
    assert beat.doing == {"predict": "denoise"}.get(what, what)
    assert running.engine.heartbeat() == beat
    running.gate.open()
    future.result(TIMEOUT)
    assert running.engine.heartbeat().since >= beat.since


@pytest.mark.parametrize("ending", ["done", "cancelled"])
def test_an_idle_engine_lets_go_of_its_last_batch(running: Running, ending: str) -> None:
    before = batches_held()
    running.engine.start()
    future = running.engine.submit("one", spec(steps=4 if ending == "done" else 150))
    if ending == "cancelled":
        running.engine.cancel("one")
    wait([future], TIMEOUT)
    eventually(lambda: batches_held() <= before)


def batches_held() -> int:
    gc.collect()
    return sum(type(each) is Rows for each in gc.get_objects())

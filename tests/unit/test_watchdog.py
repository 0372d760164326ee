"""The watchdog: what counts as hung, and what it does then."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch

from farm.errors import Unavailable
from farm.worker.engine import Engine
from farm.worker.models.cache import ModelCache
from farm.worker.session import LOST
from farm.worker.watchdog import Watchdog, overdue
from tests.fake_models import FakeCheckpoint, FakeModels, Gate, profile, spec

TIMEOUT = 60


@pytest.mark.parametrize(
    ("doing", "seconds", "longest", "hung"),
    [
        ("denoise", 9.0, 0.0, False),  # within patience: it may be compiling
        ("denoise", 11.0, 0.0, True),
        ("denoise", 11.0, 1.0, True),
        ("denoise", 11.0, 1.2, False),  # not ten times what is usual here
        ("decode", 13.0, 1.2, True),
        ("load", 119.0, 1.0, False),  # a slow disk is no fault of the device
        ("load", 121.0, 1.0, True),
        ("turn", 11.0, 0.0, True),  # stuck where it should not even be for long
        ("idle", 9999.0, 0.0, False),
    ],
)
def test_hung_is_long_and_ten_times_as_long_as_ever(
    doing: str, seconds: float, longest: float, hung: bool
) -> None:
    assert overdue(doing, seconds, longest=longest, patience=10.0) == hung  # type: ignore[arg-type]


class Watched:
    """An engine under a watchdog that notes the end of the process instead of ending it."""

    def __init__(self) -> None:
        self.ended: list[int] = []
        self.settled: list[float] = []
        self.told: list[dict[str, str]] = []
        self.over = threading.Event()
        self.checkpoint = FakeCheckpoint("fake")
        self.dog = Watchdog(
            patience=0.2, settle=self.settled.append, tell=self.told.append, end=self._end
        )
        self.engine = Engine(
            cast(ModelCache, FakeModels(self.checkpoint)),
            profile(4),
            torch.device("cpu"),
            on_lost=self.dog.lost,
        )

    def _end(self, status: int) -> None:
        self.ended.append(status)
        self.over.set()


def test_a_step_that_hangs_ends_the_process(capfd: pytest.CaptureFixture[str]) -> None:
    watched, gate = Watched(), Gate()
    watched.checkpoint.fault = lambda what, _: gate() if what == "predict" else None
    with watched.engine:
        future = watched.engine.submit("a", spec())
        watched.dog.watch(watched.engine)
        assert watched.over.wait(TIMEOUT)
        gate.open()
        future.result(TIMEOUT)
    assert watched.ended == [LOST]
    assert watched.settled, "finished images were not seen to their rows"
    assert [error["class"] for error in watched.told] == ["hung"]
    assert watched.told[0]["detail"].startswith("The worker hung: denoise has not ended for")
    watched.dog.stop()


def test_a_lock_that_is_never_let_go_of_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, gate = Watched(), Gate()
    core: Any = watched.engine._core
    monkeypatch.setattr(core._wardrobe, "changed", gate)
    with watched.engine:
        future = watched.engine.submit("a", spec())
        watched.dog.watch(watched.engine)
        assert watched.over.wait(TIMEOUT)
        gate.open()
        future.result(TIMEOUT)
    watched.dog.stop()


def test_a_measurement_is_watched_as_a_load_is(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, gate = Watched(), Gate()
    monkeypatch.setattr(watched.engine._core.calibration, "moments", lambda *_: gate() or [])
    with watched.engine, ThreadPoolExecutor(1) as pool:
        measured = pool.submit(watched.engine.calibrate, "fake")
        assert gate.reached.wait(TIMEOUT)
        assert watched.engine.heartbeat().doing == "load"
        gate.open()
        assert measured.result(TIMEOUT) == []


def test_what_is_waited_for_without_jobs_is_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    watched, gate = Watched(), Gate()
    monkeypatch.setattr(watched.engine._core._encodes, "settle", gate)
    with watched.engine:
        assert gate.reached.wait(TIMEOUT)
        assert watched.engine.heartbeat().doing == "turn"
        gate.open()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_dies_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched()

    def dies() -> None:
        raise SystemExit

    monkeypatch.setattr(watched.engine._core._wardrobe, "changed", dies)
    watched.engine.submit("a", spec())
    watched.engine.start()
    watched.dog.watch(watched.engine)
    assert watched.over.wait(TIMEOUT)
    watched.dog.stop()


def test_the_process_ends_though_nothing_can_be_seen_to_its_rows() -> None:
    watched = Watched()

    def fails(_: float) -> None:
        raise OSError("the database is away")

    watched.dog._settle = fails
    with pytest.raises(OSError, match="away"):
        watched.dog.lost(torch.AcceleratorError("CUDA error"))
    assert watched.ended == [LOST]
    assert watched.told[0]["title"] == "Device lost"


def test_the_process_ends_though_nobody_hears_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.worker.watchdog._FLUSH_SECONDS", 0.05)
    watched, gate = Watched(), Gate()
    watched.dog._tell = lambda _: gate()
    watched.dog.lost(torch.AcceleratorError("CUDA error"))
    assert watched.ended == [LOST]
    gate.open()


def test_a_lost_device_ends_the_process_before_any_job_is_judged() -> None:
    watched = Watched()
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    judged: list[bool] = []

    def fault(what: str, _: object) -> None:
        if what == "predict":
            raise error

    watched.checkpoint.fault = fault
    futures = [watched.engine.submit(str(n), spec(seed=n)) for n in range(3)]
    watched.dog._end = lambda status: judged.extend(future.done() for future in futures)
    watched.engine.start()
    for future in futures:
        assert isinstance(future.exception(TIMEOUT), Unavailable)
    assert judged == [False, False, False]
    with pytest.raises(Unavailable):
        watched.engine.submit("later", spec())


def test_running_out_of_memory_is_no_lost_device() -> None:
    watched = Watched()

    def fault(what: str, _: object) -> None:
        if what == "predict":
            raise torch.OutOfMemoryError("CUDA out of memory")

    watched.checkpoint.fault = fault
    with watched.engine:
        assert watched.engine.submit("a", spec()).exception(TIMEOUT) is not None
        watched.checkpoint.fault = lambda what, seen: None
        watched.engine.submit("b", spec(width=128)).result(TIMEOUT)
    assert watched.ended == []

"""Recorded calls: when they are made, what they read, when they are let go of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from farm.worker.memory.profiles import by_name
from farm.worker.models.forwards import Forwards
from farm.worker.models.graphs import KEPT, WARM, Graphs, Inputs
from farm.worker.models.workbench import WORKBENCH


class Recorder:
    """Records on a CPU: its replay works on the memory that the recorded call read and filled."""

    def __init__(self) -> None:
        self.recorded = self.bytes = 0
        self.replayed = 0
        self.forgot = 0
        self.error: Exception | None = None

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.error:
            raise self.error
        self.recorded += 1
        self.bytes = 100
        made = torch.empty_like(work())

        def replay() -> None:
            self.replayed += 1
            made.copy_(work())

        return replay, made

    def forget(self) -> None:
        self.forgot += 1
        self.bytes = 0


class Model:
    """A weight that may change in place."""

    def __init__(self) -> None:
        self.weight = torch.tensor(2.0)

    def __call__(self, inputs: Inputs) -> Tensor:
        x, extra = inputs
        assert x is not None
        return x * self.weight + (0 if extra is None else extra)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_it_is_recorded_once_it_is_warm_and_makes_the_same(recorder: Recorder) -> None:
    graphs, model = Graphs(recorder), Model()
    made = [graphs("a", model, (torch.full((3,), float(n)), None)) for n in range(WARM + 3)]
    assert [each[0].item() for each in made] == [2.0 * n for n in range(WARM + 3)]
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_weights_may_change_in_place(recorder: Recorder) -> None:
    graphs, model = Graphs(recorder), Model()
    for _ in range(WARM + 1):
        graphs("a", model, (torch.ones(1), torch.ones(1)))
    model.weight.copy_(torch.tensor(5.0))
    assert graphs("a", model, (torch.ones(1), torch.ones(1) * 3)).item() == 8.0
    assert recorder.replayed == 2


def test_inputs_keep_their_numbers(recorder: Recorder) -> None:
    graphs, model = Graphs(recorder), Model()
    first = torch.ones(2)
    for _ in range(WARM + 2):
        graphs("a", model, (first, None))
    graphs("a", model, (torch.zeros(2), None))
    assert first.tolist() == [1.0, 1.0]


def test_each_key_has_a_recording_of_its_own(recorder: Recorder) -> None:
    graphs, model = Graphs(recorder), Model()
    for _ in range(WARM + 2):
        assert graphs("a", model, (torch.ones(2), None)).shape == (2,)
        assert graphs("b", model, (torch.ones(5), None)).shape == (5,)
    assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_what_cannot_be_recorded_runs_as_it_is_for_ever(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    recorder.error = torch.AcceleratorError("operation not permitted when stream is capturing")
    graphs, model = Graphs(recorder), Model()
    for _ in range(WARM + 2):
        assert graphs("a", model, (torch.ones(1), None)).item() == 2.0
    recorder.error = None
    graphs("a", model, (torch.ones(1), None))
    assert recorder.recorded == 0
    assert caplog.text.count("not permitted when stream is capturing") == 1


def test_while_anything_is_compiled_nothing_is_recorded_and_nobody_waits(
    recorder: Recorder,
) -> None:
    graphs, model = Graphs(recorder), Model()
    with WORKBENCH:
        for _ in range(WARM + 3):
            assert graphs("a", model, (torch.ones(1), None)).item() == 2.0
        assert recorder.recorded == 0
    graphs("a", model, (torch.ones(1), None))
    assert recorder.recorded == 1
    recorder.error = RuntimeError("cannot be recorded")
    for _ in range(WARM + 1):
        graphs("b", model, (torch.ones(1), None))
    assert not WORKBENCH.locked()


def test_those_used_longest_ago_are_let_go_of(recorder: Recorder) -> None:
    graphs, model = Graphs(recorder), Model()
    for key in [*range(KEPT), 0, KEPT]:
        for _ in range(WARM + 1):
            graphs(key, model, (torch.ones(1), None))
    assert recorder.recorded == KEPT + 1
    graphs(0, model, (torch.ones(1), None))
    assert recorder.recorded == KEPT + 1
    graphs(1, model, (torch.ones(1), None))
    assert recorder.recorded == KEPT + 2


def test_after_weights_have_moved_it_is_recorded_anew(recorder: Recorder) -> None:
    graphs, model = Graphs(recorder), Model()
    assert not graphs.forget()
    for _ in range(WARM + 1):
        graphs("a", model, (torch.ones(1), None))
    assert graphs.forget()
    model.weight = torch.tensor(3.0)
    made = [graphs("a", model, (torch.ones(1), None)).item() for _ in range(WARM + 1)]
    assert made == [3.0] * (WARM + 1)
    assert recorder.recorded == 2


CUDA = torch.device("cuda")


class UNet:
    """Sums everything up that it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, x: Tensor, t: Tensor, *, encoder_hidden_states: Tensor, **more: Any
    ) -> tuple[Tensor]:
        self.calls += 1
        extra = more["added_cond_kwargs"] or {}
        others = sum((each.sum() for each in extra.values()), torch.tensor(0.0))
        return (x + t.view(-1, 1) + encoder_hidden_states.sum() + others,)


@pytest.fixture
def forwards(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Forwards:
    monkeypatch.setattr("farm.worker.models.forwards.CudaRecorder", lambda _: recorder)
    return Forwards(UNet(), replace(by_name("24gb"), cuda_graphs=True), CUDA)


def given(rows: int = 2, *, pooled: bool = False) -> Inputs:
    x = torch.ones(rows, 3)
    extra = (torch.ones(rows, 2), torch.ones(rows, 6)) if pooled else (None, None)
    return (x, torch.arange(rows).float(), torch.ones(rows, 77), *extra)


@pytest.mark.parametrize("pooled", [False, True])
def test_forwards_are_recorded_for_each_shape(
    forwards: Forwards, recorder: Recorder, pooled: bool
) -> None:
    for rows in (2, 4):
        expected = forwards(given(rows, pooled=pooled), plainly=True)
        for _ in range(WARM + 2):
            made = forwards(given(rows, pooled=pooled), plainly=False)
            assert torch.equal(made, expected)
    assert (recorder.recorded, recorder.replayed) == (2, 4)


def test_what_must_run_plainly_is_never_replayed(forwards: Forwards, recorder: Recorder) -> None:
    for _ in range(WARM + 2):
        forwards(given(), plainly=True)
    assert recorder.recorded == 0


def test_given_up_it_records_no_more(forwards: Forwards, recorder: Recorder) -> None:
    assert forwards.recorded_bytes == 0
    for _ in range(WARM + 1):
        forwards(given(), plainly=False)
    assert forwards.recorded_bytes == 100
    assert forwards.give_up()
    assert forwards.recorded_bytes is None
    assert not forwards.give_up()
    for _ in range(WARM + 1):
        forwards(given(), plainly=False)
    assert recorder.recorded == 1


@pytest.mark.parametrize(
    ("profile", "device"), [("24gb", CUDA), ("cpu", torch.device("cpu"))], ids=["off", "no card"]
)
def test_nothing_is_recorded_unless_told_and_on_a_card(
    profile: str, device: torch.device, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.worker.models.forwards.CudaRecorder", lambda _: recorder)
    told = replace(by_name(profile), cuda_graphs=profile == "cpu")
    forwards = Forwards(UNet(), told, device)
    for _ in range(WARM + 2):
        forwards(given(), plainly=False)
    assert recorder.recorded == 0


def test_memory_that_nothing_recorded_uses_is_not_shared_again(recorder: Recorder) -> None:
    graphs, model = Graphs(recorder), Model()
    inputs = (torch.ones(1), None)
    for _ in range(WARM + 1):
        graphs("a", model, inputs)
    recorder.error = RuntimeError("cannot be recorded")
    for _ in range(WARM + 1):
        graphs("b", model, inputs)
    assert recorder.forgot == 0  # a uses it
    graphs.forget()
    assert recorder.forgot == 1
    for _ in range(WARM + 1):
        graphs("c", model, inputs)
    assert recorder.forgot == 2

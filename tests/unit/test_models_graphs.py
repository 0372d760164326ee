"""Recorded calls: when they are made, what they read, when they are let go of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from farm.worker.models.graphs import KEPT, WARM, Graphs, Inputs


class Recorder:
    """Records on a CPU: its replay works on the memory that the recorded call read and filled."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0
        self.error: Exception | None = None

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self.error:
            raise self.error
        self.recorded += 1
        made = torch.empty_like(work())

        def replay() -> None:
            self.replayed += 1
            made.copy_(work())

        return replay, made


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

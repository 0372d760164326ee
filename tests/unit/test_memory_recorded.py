"""Memory that recorded forwards hold is planned with, and given up before a size is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from farm.errors import DoesNotFit
from farm.worker.engine.limits import RowLimits
from farm.worker.memory.planner import Recorded, denoise_bytes, peak_bytes
from farm.worker.memory.profiles import GIB, by_name
from farm.worker.models.graphs import WARM, CudaRecorder, Graphs
from tests.fake_models import FakeCheckpoint, FakeModels
from tests.pretended_card import pretended

CARD = replace(by_name("24gb"), cuda_graphs=True)
LARGE = 1024**2
FORWARD = int(denoise_bytes(CARD, "sdxl", LARGE, 16))


@pytest.mark.parametrize(
    ("recorded", "more"),
    [
        (None, 0),
        (Recorded(), FORWARD),  # it will be recorded itself
        (Recorded(own=FORWARD // 2), FORWARD),
        (Recorded(own=2 * FORWARD), 2 * FORWARD),  # a larger one is, and they share
        (Recorded(own=1, others=GIB), FORWARD + GIB),
    ],
)
def test_recordings_are_part_of_the_peak(recorded: Recorded | None, more: int) -> None:
    plain = peak_bytes(CARD, "sdxl", LARGE, 16)
    assert peak_bytes(CARD, "sdxl", LARGE, 16, recorded=recorded) == pytest.approx(
        plain + more, abs=2
    )


class Models(FakeModels):
    """Whose forwards are recorded until that is given up."""

    def __init__(self, *checkpoints: FakeCheckpoint) -> None:
        super().__init__(*checkpoints)
        self.recorded: Mapping[str, int] = {"fake": 0}

    def give_up_speed(self) -> bool:
        self.recorded = {}
        return True


def limited(**changes: Any) -> tuple[RowLimits, Models]:
    models: Any = Models(FakeCheckpoint("fake", family="sdxl"))
    models.known["fake"].vae_dtype = "float16"
    return RowLimits(models, replace(CARD, **changes)), models


def test_rows_leave_room_for_recordings_of_them_and_of_others() -> None:
    limits, models = limited(weights_bytes=int(15.5 * GIB))
    plain = RowLimits(
        limits._models, replace(CARD, weights_bytes=int(15.5 * GIB), cuda_graphs=False)
    )
    shape = ("fake", 1024, 1024)
    assert (plain.allowed(*shape), plain.pinned(*shape)) == (16, 16)
    assert (limits.allowed(*shape), limits.pinned(*shape)) == (8, 8)
    models.recorded = {"fake": 100, "other": 2 * GIB}
    assert (limits.allowed(*shape), limits.pinned(*shape)) == (4, 8)
    models.give_up_speed()
    assert (limits.allowed(*shape), limits.pinned(*shape)) == (16, 8)


def test_no_size_is_refused_for_the_sake_of_recordings() -> None:
    limits, models = limited(memory_bytes=12 * GIB)
    models.bytes = 7 * GIB
    models.recorded = {"fake": 0, "other": 2 * GIB}
    checkpoint: Any = models.known["fake"]
    limits.check(checkpoint, _size(512))
    assert models.recorded
    with pytest.raises(DoesNotFit):
        limits.check(checkpoint, _size(4096))
    assert models.recorded, "given up in vain"
    limits.check(checkpoint, _size(1280))
    assert not models.recorded


def _size(side: int) -> Any:
    return SimpleNamespace(width=side, height=side)


@pytest.mark.skipif(
    torch.cuda.is_available() or not torch.backends.cuda.is_built(),
    reason="there is a card, or a torch that knows none",
)
def test_what_recordings_hold_is_measured() -> None:
    with pretended():
        device = torch.device("cuda")
        recorder = CudaRecorder(device)
        calls, given = Graphs(recorder), torch.ones(1024, 1024, device=device)
        assert calls.bytes == 0
        for _ in range(WARM + 1):
            calls("a", lambda inputs: inputs[0] * 2 + 1, (given,))
        assert calls.bytes >= 4 * 2**20
        calls.forget()
        assert calls.bytes == 0

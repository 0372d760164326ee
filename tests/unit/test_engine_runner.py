"""A step that fails leaves its slots as they were; the rows allowed do not depend on company."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
import torch

from farm.worker.engine.limits import RowLimits
from farm.worker.engine.requests import Condition, Denoise, EncodeText, Made
from farm.worker.engine.runner import Runner
from farm.worker.engine.slot import Slot
from farm.worker.memory.planner import rows_allowed
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.samplers import Draw, compile_program
from farm.worker.samplers.noise import ImageNoise
from tests.fake_models import ALPHAS, FakeCheckpoint, FakeModels

CPU = torch.device("cpu")


def slot(checkpoint: FakeCheckpoint, seed: int, sampler: str = "Euler a") -> Slot:
    text = EncodeText("fake", ("a cat",))
    request = Denoise(
        checkpoint="fake",
        width=64,
        height=64,
        sampler=sampler,
        steps=4,
        prompt=(Condition(Made(text, checkpoint.encode("a cat"))),),
        negative=None,
        cfg_scale=1.0,
        seed=seed,
    )
    return Slot(request, compile_program(sampler, 4, ALPHAS), CPU)


def run(checkpoint: Any, slots: list[Slot], steps: int) -> None:
    runner = Runner(CPU)
    for _ in range(steps):
        runner.step(checkpoint, slots, bucket=len(slots), blocks=1)


def test_a_step_tried_again_uses_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint: Any = FakeCheckpoint("fake")
    tried, straight = slot(checkpoint, 1), slot(checkpoint, 1)
    run(checkpoint, [tried], 1)
    before = tried.home
    with monkeypatch.context() as patch:
        patch.setattr("farm.worker.engine.runner.download", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(checkpoint, [tried], 1)
    assert tried.position == 1
    assert tried.home is before
    run(checkpoint, [tried], 3)
    run(checkpoint, [straight], 4)
    assert torch.equal(tried.x, straight.x)


def test_a_step_sends_the_device_one_small_table_and_the_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What slots bring along stays there while the same go on together."""
    checkpoint: Any = FakeCheckpoint("fake")
    slots = [slot(checkpoint, seed) for seed in range(5)]
    runner, sent = Runner(CPU), []

    def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        sent.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr("farm.worker.engine.runner.upload", upload)
    monkeypatch.setattr("farm.worker.engine.rows.upload", upload)
    runner.step(checkpoint, slots, bucket=8, blocks=1)
    packed = len(sent)
    assert packed > 2
    for _ in range(2):
        runner.step(checkpoint, slots, bucket=8, blocks=1)
    assert sent[packed:] == [(5, 32), (5, 4, 8, 8)] * 2
    runner.step(checkpoint, slots, bucket=8, blocks=1)
    assert sent[-1] == (5, 32)  # the last step takes no noise


def test_slots_that_go_on_together_share_their_registers_and_who_leaves_takes_only_its_own() -> (
    None
):
    checkpoint: Any = FakeCheckpoint("fake")
    slots = [slot(checkpoint, seed) for seed in range(3)]
    runner = Runner(CPU)
    for _ in range(2):
        runner.step(checkpoint, slots, bucket=4, blocks=1)
        assert all(each.lives(slots[0].home, place) for place, each in enumerate(slots))
    stays, parked, goes = slots
    before = parked.registers.clone()
    runner.step(checkpoint, [stays, goes], bucket=2, blocks=1)
    assert len(stays.home) == 2
    assert len(parked.home) == 1
    assert torch.equal(parked.registers, before)
    # In another order they lie in other places.
    runner.step(checkpoint, [goes, stays], bucket=2, blocks=1)
    straight = [slot(checkpoint, seed) for seed in (0, 2)]
    run(checkpoint, straight, 4)
    assert torch.equal(stays.x, straight[0].x)
    assert torch.equal(goes.x, straight[1].x)


@pytest.mark.parametrize("sampler", ["DPM++ 2M SDE", "Euler a", "DPM2 a"])
def test_noise_is_drawn_while_the_device_is_at_work(
    sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawers: list[str] = []

    class Watched(ImageNoise):
        """Of this test alone: the threads may still draw for images of others."""

        def draw(self, wanted: Draw) -> torch.Tensor:
            drawers.append(threading.current_thread().name)
            return super().draw(wanted)

    monkeypatch.setattr("farm.worker.engine.slot.ImageNoise", Watched)
    checkpoint: Any = FakeCheckpoint("fake")
    drawing = slot(checkpoint, 1, sampler)
    run(checkpoint, [drawing], len(drawing.program.steps))
    # For three steps: the last one takes no noise.
    assert len(drawers) == 3
    assert all(name.startswith("noise") for name in drawers)


def test_where_nobody_draws_ahead_it_is_drawn_when_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint: Any = FakeCheckpoint("fake")
    ahead = slot(checkpoint, 1, "DPM++ 2M SDE")
    run(checkpoint, [ahead], 4)
    ended = ThreadPoolExecutor(1)
    ended.shutdown()
    monkeypatch.setattr("farm.worker.engine.drawing._threads", ended)
    alone = slot(checkpoint, 1, "DPM++ 2M SDE")
    run(checkpoint, [alone], 4)
    assert torch.equal(alone.registers, ahead.registers)


def test_noise_is_the_seed_s_alone() -> None:
    checkpoint: Any = FakeCheckpoint("fake")
    drawn = torch.randn((4, 8, 8), generator=torch.Generator().manual_seed(7))
    first, other = slot(checkpoint, 7), slot(checkpoint, 8)
    assert torch.equal(first.x, drawn * first.program.start.noise)
    assert not torch.equal(first.x, other.x)


def test_the_rows_allowed_count_on_all_the_weights_there_may_ever_be() -> None:
    card = by_name("8gb")
    models = FakeModels(FakeCheckpoint("fake"))
    limits = RowLimits(cast(ModelCache, models), card)
    rows = {
        weights: rows_allowed(card, "sd15", 1024, 1024, weights_bytes=weights)
        for weights in (0, card.weights_bytes)
    }
    assert rows[0] > rows[card.weights_bytes]
    assert limits.allowed("fake", 1024, 1024) == rows[card.weights_bytes]

"""A step that fails leaves its slots as they were; the rows allowed do not depend on company."""

from __future__ import annotations

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
from farm.worker.samplers import compile_program
from tests.fake_models import ALPHAS, FakeCheckpoint, FakeModels

CPU = torch.device("cpu")


def slot(checkpoint: FakeCheckpoint, seed: int) -> Slot:
    text = EncodeText("fake", ("a cat",))
    request = Denoise(
        checkpoint="fake",
        width=64,
        height=64,
        sampler="Euler a",
        steps=4,
        prompt=(Condition(Made(text, checkpoint.encode("a cat"))),),
        negative=None,
        cfg_scale=1.0,
        seed=seed,
    )
    return Slot(request, compile_program("Euler a", 4, ALPHAS), CPU)


def run(checkpoint: Any, slots: list[Slot], steps: int) -> None:
    runner = Runner(CPU)
    for _ in range(steps):
        runner.step(checkpoint, slots, bucket=len(slots), blocks=1)


def test_a_step_tried_again_uses_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint: Any = FakeCheckpoint("fake")
    tried, straight = slot(checkpoint, 1), slot(checkpoint, 1)
    run(checkpoint, [tried], 1)
    before = tried.registers
    with monkeypatch.context() as patch:
        patch.setattr("farm.worker.engine.runner.download", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(checkpoint, [tried], 1)
    assert tried.position == 1
    assert tried.registers is before
    run(checkpoint, [tried], 3)
    run(checkpoint, [straight], 4)
    assert torch.equal(tried.x, straight.x)


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

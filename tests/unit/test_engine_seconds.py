"""What a forward is expected to take, and groups that take turns by it in the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from torch import Tensor

from farm.spec.measurement import Measurement
from farm.worker.engine.limits import UNKNOWN_SECONDS, RowLimits
from farm.worker.memory.experience import Experience
from farm.worker.models.cache import ModelCache
from tests.engine_bench import Bench, alone
from tests.fake_models import FakeCheckpoint, FakeModels, profile, spec


def limits(*known: tuple[int, int, float]) -> RowLimits:
    """That know the seconds of (side, rows)."""
    checkpoint = FakeCheckpoint("fake")
    experience = Experience(
        Measurement(replace(checkpoint.unet_call, pixels=side * side, rows=rows), seconds=seconds)
        for side, rows, seconds in known
    )
    models = FakeModels(checkpoint)
    return RowLimits(cast(ModelCache, models), profile(16), experience=experience)


@pytest.mark.parametrize(
    ("known", "side", "rows", "expected"),
    [
        ([], 512, 4, 4 * 512 * 512 * UNKNOWN_SECONDS),
        ([(512, 4, 0.3)], 512, 4, 0.3),
        ([(512, 4, 0.3)], 512, 8, 0.6),
        ([(512, 4, 0.3)], 1024, 2, 0.6),
        # The nearest by pixels of all rows, and its own timing before another's.
        ([(512, 2, 0.2), (512, 16, 0.8)], 512, 8, 0.4),
        ([(512, 2, 0.2), (512, 16, 0.8)], 512, 1, 0.1),
        ([(1024, 1, 0.9), (512, 4, 0.3)], 512, 4, 0.3),
        ([(512, 4, 0.3), (1024, 1, 0.9)], 1024, 1, 0.9),
    ],
)
def test_a_forward_takes_what_was_timed_or_in_proportion(
    known: list[tuple[int, int, float]], side: int, rows: int, expected: float
) -> None:
    assert limits(*known).seconds("fake", side, side, rows) == pytest.approx(expected)


def test_it_follows_what_is_learnt() -> None:
    checkpoint, experience = FakeCheckpoint("fake"), Experience()
    models = cast(ModelCache, FakeModels(checkpoint))
    known = RowLimits(models, profile(16), experience=experience)
    assert known.seconds("fake", 512, 512, 4) == 4 * 512 * 512 * UNKNOWN_SECONDS
    call = replace(checkpoint.unet_call, pixels=512 * 512, rows=4)
    for _ in range(2):
        experience.timed(call, 0.25, enough=1)
    assert known.seconds("fake", 512, 512, 4) == 0.25


def test_sizes_take_turns_in_the_engine_and_change_no_image() -> None:
    jobs = [spec(str(n), n, width=width, steps=12) for n, width in enumerate((64, 128, 64, 128))]
    checkpoint = FakeCheckpoint("fake")
    timed = (
        Measurement(replace(checkpoint.unet_call, pixels=pixels, rows=4), seconds=0.2)
        for pixels in (64 * 64, 64 * 128)
    )
    bench = Bench(checkpoint, experience=Experience(timed))
    widths: list[int] = []
    predict = checkpoint.predict

    def seen(x: Tensor, *rest: Any, **named: Any) -> Tensor:
        widths.append(8 * x.shape[-1])
        return predict(x, *rest, **named)

    checkpoint.predict = seen  # type: ignore[method-assign]
    for job, made in zip(jobs, bench.render(*jobs), strict=True):
        np.testing.assert_allclose(made.image, alone(job), rtol=0, atol=1e-5)
    # Half a second pays three forwards, of which the third takes too much.
    first = [64] * 3 + [128] * 3 + [64] * 2 + [128] * 2
    assert widths[: len(first)] == first
    assert sorted(widths) == [64] * 12 + [128] * 12

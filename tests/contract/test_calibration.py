"""Calibration: calls are run only to be measured, beside the jobs under way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from farm.errors import CheckpointError, Unavailable
from farm.spec.measurement import Measurement
from farm.worker.engine import Engine
from farm.worker.memory.experience import Experience
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import scan
from farm.worker.models.checkpoint import Checkpoint
from tests.checkpoints import make_tiny
from tests.fake_models import spec

CPU = torch.device("cpu")
PROFILE = replace(by_name("cpu"), buckets=(1, 2, 4), max_rows=4, rows_at_1024=1)
SIZES = [(64, 64), (96, 64)]


@pytest.fixture
def told() -> list[Measurement]:
    return []


@pytest.fixture
def engine(tmp_path: Path, told: list[Measurement]) -> Any:
    make_tiny(tmp_path, "sd15")
    make_tiny(tmp_path, "sdxl-refiner")
    models = ModelCache(scan([tmp_path]), PROFILE, CPU)
    with Engine(models, PROFILE, CPU, experience=Experience(tell=told.append)) as engine:
        yield engine


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sdxl-refiner"])
def test_every_bucket_of_every_size_is_timed(
    engine: Engine, told: list[Measurement], name: str
) -> None:
    found = engine.calibrate(name, SIZES)
    asked = [(each.call.work, each.width, each.height, each.call.rows) for each in found]
    assert asked == [
        call
        for width, height in SIZES
        for call in (
            ("denoise", width, height, 1),
            ("denoise", width, height, 2),
            ("denoise", width, height, 4),
            ("decode", width, height, 1),
            ("decode", width, height, 1),  # and back
        )
    ]
    for each in found:
        assert each.seconds is not None
        assert each.seconds > 0
        assert each.predicted > 0
        assert each.bytes is None  # a CPU's memory cannot be told
    assert {one.call for one in told} == {each.call for each in found}


def test_by_default_it_is_the_size_the_unet_was_made_for(engine: Engine) -> None:
    sizes = {(each.width, each.height) for each in engine.calibrate("tiny-sd15")}
    assert sizes == {(64, 64), (32, 32)}


def test_jobs_go_on_beside_it(engine: Engine) -> None:
    running = engine.submit("one", spec(checkpoint="tiny-sd15", steps=6, width=64, height=64))
    engine.calibrate("tiny-sd15", SIZES[:1])
    assert running.result(60).image.shape == (64, 64, 3)


def test_what_is_too_much_is_remembered_and_the_rest_measured(
    engine: Engine, told: list[Measurement], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Checkpoint.predict

    def short(self: Checkpoint, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, x, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "predict", short)
        found = engine.calibrate("tiny-sd15", SIZES[:1])
    assert [each.seconds is None for each in found] == [False, False, True, False, False]
    assert [one.failed for one in told if one.call.rows == 4] == [True]
    found = engine.calibrate("tiny-sd15", SIZES[:1])  # and has its chance again
    assert not any(each.seconds is None for each in found)
    assert [one.failed for one in told if one.call.rows == 4][-1] is False


def test_a_checkpoint_that_is_not_there(engine: Engine) -> None:
    with pytest.raises(CheckpointError, match="nobody"):
        engine.calibrate("nobody")


def test_an_engine_that_stopped_says_so(engine: Engine) -> None:
    engine.stop()
    with pytest.raises(Unavailable):
        engine.calibrate("tiny-sd15")

"""Previews: made only for those who look, and nobody's undoing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from farm.worker.engine import reports
from farm.worker.engine.stopwatch import Stopwatch
from tests.engine_bench import Bench, alone
from tests.fake_models import mean_of, spec


class Viewer:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, watched: set[str]) -> None:
        monkeypatch.setattr(reports, "PROGRESS_SECONDS", 0.0)
        self.seen: list[tuple[str, int, int, float]] = []
        self.made = 0
        self.bench = Bench(watched=watched.__contains__, on_preview=self.show)
        preview: Any = self.bench.core._reports._preview
        monkeypatch.setattr(preview.previews, "picture", self.picture)

    def picture(self, checkpoint: object, latent: Tensor) -> Tensor:
        self.made += 1
        return latent

    def show(self, key: str, step: int, steps: int, picture: Tensor) -> None:
        self.seen.append((key, step, steps, float(picture.mean())))


def test_each_step_of_a_watched_job_is_shown_and_of_others_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer = Viewer(monkeypatch, {"job-1"})
    viewer.bench.render(spec("a cat", 1, steps=3), spec("a dog", 2, steps=3, cfg_scale=1))
    assert [(key, step, steps) for key, step, steps, _ in viewer.seen] == [
        ("job-1", 1, 3),
        ("job-1", 2, 3),
        ("job-1", 3, 3),
    ]
    # What is shown is the estimate of the clean latent, not the noise that is left.
    assert viewer.seen[-1][3] == pytest.approx(mean_of("a dog"), abs=0.1)


def test_without_anybody_who_looks_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = Viewer(monkeypatch, set())
    viewer.bench.render(spec())
    assert viewer.made == 0


def test_a_preview_that_fails_harms_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = Viewer(monkeypatch, {"job-0"})
    preview: Any = viewer.bench.core._reports._preview

    def broken(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(preview.previews, "picture", broken)
    (image,) = viewer.bench.render(spec("a cat", 1))
    np.testing.assert_array_equal(image.image, alone(spec("a cat", 1)))


def test_a_picture_that_is_not_home_yet_is_shown_after_a_later_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(Stopwatch):
        asked = 0

        @property
        def passed(self) -> bool:
            self.asked += 1
            return self.asked > 1

    monkeypatch.setattr(reports, "Stopwatch", Slow)
    viewer = Viewer(monkeypatch, {"job-0", "job-1"})
    first, second = viewer.bench.add(spec("a cat", 1, steps=4), spec("a dog", 2, steps=4))
    while not viewer.made:
        viewer.bench.run(turns=1)
    assert viewer.made == 2
    assert viewer.seen == []
    viewer.bench.core.jobs.cancel(second.key)
    viewer.bench.run()
    # Whoever is gone is shown to nobody, and the last picture is not waited for.
    assert [(key, step) for key, step, _, _ in viewer.seen] == [
        ("job-0", step) for step in range(1, len(viewer.seen) + 1)
    ]
    assert viewer.seen
    assert first.future.result(0).stats.steps == 4

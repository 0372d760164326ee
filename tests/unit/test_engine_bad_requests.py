"""Requests that no picture can come of, as a recipe may make them: each ends its own job only, by
an error that says what to do, and the jobs beside it get what they get alone."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from farm.errors import CheckpointError, InvalidInput
from farm.spec.job import JobSpec
from farm.worker.engine.requests import Begin, Denoise, Made, Recipe
from farm.worker.samplers.schedules import SCHEDULES
from tests.encores import encore
from tests.engine_bench import Bench, alone
from tests.fake_models import FakeCheckpoint, spec

WRONG = "a wrong request"
OTHERS = [spec("a cat", 1), spec("a bus", 2, sampler="Euler a", steps=6)]


def render_beside_others(bench: Bench, *bad: JobSpec) -> list[BaseException | None]:
    """How bad jobs end; the others must not notice."""
    jobs = bench.add(OTHERS[0], *bad, OTHERS[1])
    bench.run()
    for job in (jobs[0], jobs[-1]):
        image = job.future.result(0).image
        np.testing.assert_allclose(image, alone(job.spec), rtol=0, atol=1e-5)
    assert not bench.core.jobs
    return [job.future.exception(0) for job in jobs[1:-1]]


def changed(**changes: Any) -> Any:
    """A recipe that asks wrongly for the image of ``WRONG``: for another ``cfg_scale``, or to
    begin with its own latent after so many steps ``skipped``."""

    def recipe(job: JobSpec) -> Recipe:
        def wrong(request: Denoise, made: Made[Any]) -> Denoise | None:
            if job.prompt != WRONG:
                return None
            again = dict(changes)
            if "skipped" in again:
                again["begin"] = Begin(made, again.pop("skipped"))
            return replace(request, **again)

        return encore(job, wrong)

    return recipe


@pytest.mark.parametrize("skipped", [4, 5, 150, -1])
def test_steps_beyond_the_schedule(monkeypatch: pytest.MonkeyPatch, skipped: int) -> None:
    monkeypatch.setattr("farm.worker.engine.job.txt2img", changed(skipped=skipped))
    [error] = render_beside_others(Bench(), spec(WRONG, 3, steps=4))
    assert isinstance(error, InvalidInput)
    assert "no step to begin with" in error.message
    assert (error.field, error.value, error.remedy) == ("skipped", skipped, "Skip 0 to 3 steps.")


@pytest.mark.parametrize("cfg_scale", [1e6, 30.5, -1.0, inf, nan])
def test_guidance_beyond_all_pictures(monkeypatch: pytest.MonkeyPatch, cfg_scale: float) -> None:
    monkeypatch.setattr("farm.worker.engine.job.txt2img", changed(cfg_scale=cfg_scale))
    [error] = render_beside_others(Bench(), spec(WRONG, 3))
    assert isinstance(error, InvalidInput)
    assert "leaves no picture" in error.message
    assert error.field == "cfg_scale"
    assert repr(error.value) == repr(cfg_scale)
    assert error.remedy == "Use 0 to 30."


@pytest.mark.parametrize(
    "levels", [[nan, 1.0, 0.0], [inf, 1.0, 0.0], [9.0, nan, 0.0], [9.0, 1, inf]]
)
def test_noise_levels_that_are_no_numbers(
    monkeypatch: pytest.MonkeyPatch, levels: list[float]
) -> None:
    monkeypatch.setitem(SCHEDULES, "simple", lambda *_: list(levels))
    [error] = render_beside_others(Bench(), spec(WRONG, 3, steps=2, scheduler="simple", rho=3.3))
    assert isinstance(error, InvalidInput)
    assert "do not fall" in error.message
    assert (error.field, error.value) == ("rho", 3.3)
    assert "Leave sigma_min, sigma_max and rho out" in str(error.remedy)


@pytest.mark.parametrize("alpha", [nan, inf, 0.0, 1.0])
def test_a_checkpoint_whose_noise_levels_are_no_numbers(alpha: float) -> None:
    broken = FakeCheckpoint("broken")
    broken.alphas_cumprod = [*broken.alphas_cumprod[:-1], alpha]
    bench = Bench(FakeCheckpoint("fake"), broken)
    [error] = render_beside_others(bench, spec(WRONG, 3, checkpoint="broken"))
    assert isinstance(error, CheckpointError)
    assert "noise schedule" in error.message
    assert error.field == "checkpoint"
    assert error.remedy

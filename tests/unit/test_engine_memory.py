"""Memory runs out at every kind of request: something is given up, and it is tried again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch

from farm.errors import DoesNotFit, FarmError, Unavailable
from farm.spec.job import JobSpec
from farm.worker.engine import pictures, reports, slot
from farm.worker.engine.adaptive import AdaptiveSlot
from farm.worker.engine.requests import (
    Crop,
    Decode,
    Denoise,
    EncodeImage,
    EncodeText,
    Request,
    Resize,
    Upscale,
)
from farm.worker.samplers import brownian
from farm.worker.samplers.noise import ImageNoise
from tests.engine_bench import Bench, alone
from tests.fake_models import FakeCheckpoint, spec

PLAIN = spec("a cat", 1, sampler="Euler a")
LATENT = spec("a cat", 1, sampler="Euler", hires_width=160, hires_height=96, steps=2)
PICTURE = LATENT.model_copy(update={"hires_upscaler": "Lanczos"})
ADAPTIVE = spec("a cat", 1, sampler="DPM adaptive")
SIBLING = spec("a dog", 2, width=72, sampler="Euler")

RunOut = Callable[[], None]
"""Raises where memory has run out."""
Place = Callable[[Bench, pytest.MonkeyPatch, RunOut], None]
"""Has it asked somewhere."""


def before(module: Any, name: str) -> Place:
    """Before a function is called."""

    def plant(_: Bench, patch: pytest.MonkeyPatch, run_out: RunOut) -> None:
        work = getattr(module, name)
        patch.setattr(module, name, lambda *args, **more: run_out() or work(*args, **more))

    return plant


def model(what: str) -> Place:
    """Before a checkpoint computes something."""

    def plant(bench: Bench, _: pytest.MonkeyPatch, run_out: RunOut) -> None:
        bench.checkpoint.fault = lambda called, _: run_out() if called == what else None

    return plant


def answering(kind: type) -> Place:
    """Before something is answered at once."""

    def plant(bench: Bench, patch: pytest.MonkeyPatch, run_out: RunOut) -> None:
        at_once: Any = bench.core.jobs._at_once

        def answer(job: Any) -> Any:
            if isinstance(job.request, kind):
                run_out()
            return at_once(job)

        patch.setattr(bench.core.jobs, "_at_once", answer)

    return plant


def loading(bench: Bench, patch: pytest.MonkeyPatch, run_out: RunOut) -> None:
    get = bench.models.get
    patch.setattr(
        bench.models,
        "get",
        lambda name: (None if name in bench.models.resident else run_out()) or get(name),
    )


@dataclass(frozen=True)
class Case:
    """Where memory runs out.

    Attributes:
        tries: so often until something is given up.
        host: it is the host's.
    """

    name: str
    kind: type
    place: Place
    job: JobSpec = PLAIN
    tries: int = 1
    host: bool = False


CASES = [
    Case("load", EncodeText, loading),
    # Several are tried one by one first.
    Case("read texts", EncodeText, model("encode"), tries=2),
    Case("put LoRAs on", Denoise, model("wear"), spec("a cat <lora:style:0.8>", 1)),
    Case("first noise", Denoise, before(slot, "ImageNoise"), host=True),
    Case("begin", Denoise, before(slot, "upload")),
    # Guided rows are tried one by one first.
    Case("forward", Denoise, model("predict"), tries=2),
    Case("noise of a step", Denoise, before(ImageNoise, "draw"), host=True),
    Case("judge a step", Denoise, before(AdaptiveSlot, "_error"), ADAPTIVE),
    # A picture is tried whole once more, without recorded forwards.
    Case("decode", Decode, model("decode"), tries=2),
    Case("decode again", Decode, model("decode again"), tries=2),
    Case("encode a picture", EncodeImage, model("encode picture"), PICTURE),
    Case("resize a latent", Resize, answering(Resize), LATENT),
    Case("resize a picture", Resize, before(pictures, "resize_picture"), PICTURE, host=True),
    Case("crop", Crop, answering(Crop), LATENT),
]


class Short:
    """A bench that is short of memory so many times in one place."""

    def __init__(self, case: Case, patch: pytest.MonkeyPatch) -> None:
        self.case = case
        self.bench = made_for(case)
        self.times = 0
        self.bench.models.idle = self.bench.models.in_host = 1
        case.place(self.bench, patch, self.run_out)

    def run_out(self) -> None:
        if self.times:
            self.times -= 1
            raise (MemoryError if self.case.host else torch.OutOfMemoryError)

    @property
    def gave_up(self) -> tuple[bool, bool]:
        """Whether anything left the device, and host memory."""
        return self.bench.models.idle < 1, self.bench.models.in_host < 1


def made_for(case: Case) -> Bench:
    checkpoint = FakeCheckpoint("fake")
    checkpoint.paints = case.job.hires_upscaler == "Lanczos"
    checkpoint.good_drafts = case.name != "decode again"
    return Bench(checkpoint, rows=2)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


ELSEWHERE = {Upscale}
"""With a model of its own: in tests/contract/test_upscalers.py."""


def test_what_was_streamed_long_ago_is_read_anew_in_the_middle_of_a_job() -> None:
    bench = Bench()
    (job,) = bench.add(spec(steps=6))
    while len(bench.checkpoint.forwards) < 3:
        bench.core.turn()
    bench.checkpoint.mode = "streamed"
    bench.models.squeezed = ["fake"]
    bench.run()
    assert (bench.models.loads, bench.checkpoint.mode) == (["fake", "fake"], "resident")
    assert np.array_equal(job.future.result(0).image, alone(job.spec))
    assert len(bench.checkpoint.forwards) == 6


def test_every_kind_of_request_has_its_case() -> None:
    assert {case.kind for case in CASES} | ELSEWHERE == set(get_args(Request))


def test_something_is_given_up_and_the_image_is_the_same(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Short(case, monkeypatch)
    job = short.bench.add(case.job, SIBLING)[0]
    short.times = case.tries
    short.bench.run()
    assert short.times == 0
    assert short.gave_up == (not case.host, case.host)
    expected = made_for(case).render(case.job)[0].image
    np.testing.assert_allclose(job.future.result(0).image, expected, rtol=0, atol=1e-5)


def test_with_nothing_left_to_give_up_the_one_job_fails(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Short(case, monkeypatch)
    (bad,) = short.bench.add(case.job)
    short.times = 10**6
    short.bench.run()
    error = bad.future.exception(0)
    assert isinstance(error, Unavailable if case.host else DoesNotFit)
    assert isinstance(error, FarmError)
    assert error.remedy
    assert short.gave_up == (not case.host, case.host)
    short.times = 0
    assert short.bench.render(SIBLING)
    assert not short.bench.core.jobs


@pytest.mark.parametrize("rng", ["CPU", "NV"])
@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ SDE", "DPM++ 2M SDE Karras"])
@pytest.mark.parametrize("nth", [0, 1, 3])
def test_noise_is_what_it_would_have_been(
    monkeypatch: pytest.MonkeyPatch, sampler: str, rng: str, nth: int
) -> None:
    """In the middle of a chunk, and of a way on the Brownian path."""
    job = spec("a cat", 1, sampler=sampler, rng=rng, steps=6, strict=True)
    straight = Bench(rows=2).render(job)[0].image
    asked: list[int] = []

    def run_out() -> None:
        asked.append(1)
        if len(asked) == nth + 1:
            raise MemoryError

    where = (ImageNoise, "_drawn") if sampler == "Euler a" else (brownian, "reduce")
    bench = Bench(rows=2)
    bench.models.in_host = 1
    (begun,) = bench.add(job)
    before(*where)(bench, monkeypatch, run_out)
    bench.run()
    assert len(asked) > nth
    assert np.array_equal(begun.future.result(0).image, straight)


def test_who_looks_on_makes_nobody_give_anything_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A preview is tried again with a later step."""
    monkeypatch.setattr(reports, "PROGRESS_SECONDS", 0.0)
    shown: list[int] = []
    bench = Bench(watched=lambda _: True, on_preview=lambda _, step, *__: shown.append(step))
    preview: Any = bench.core._reports._preview
    made: list[int] = []

    def picture(_: object, latent: torch.Tensor) -> torch.Tensor:
        made.append(1)
        if len(made) == 2:
            raise torch.OutOfMemoryError
        return latent

    monkeypatch.setattr(preview.previews, "picture", picture)
    bench.models.idle = 1
    assert bench.render(PLAIN)
    assert len(made) == PLAIN.steps
    assert 2 not in shown
    assert shown
    assert bench.models.idle == 1


def test_what_others_may_ask_for_is_not_kept_at_any_price(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(rows=2)
    clone = torch.Tensor.clone

    def short(tensor: torch.Tensor, **more: Any) -> torch.Tensor:
        if tensor.shape == (4, 8, 8):
            raise MemoryError
        return clone(tensor, **more)

    monkeypatch.setattr(torch.Tensor, "clone", short)
    other = LATENT.model_copy(update={"denoising_strength": 0.3})
    assert len(bench.render(LATENT, other, SIBLING)) == 3
    forwards = len(bench.checkpoint.forwards)
    bench.render(LATENT)
    assert len(bench.checkpoint.forwards) - forwards == LATENT.steps * 2

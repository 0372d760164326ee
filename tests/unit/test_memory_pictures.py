"""What lifted VAEs and models that enlarge pictures take: planned, counted, and let go of first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from spandrel.architectures.ESRGAN import ESRGAN

from farm.errors import DoesNotFit
from farm.spec.measurement import Call
from farm.worker.engine.limits import RowLimits
from farm.worker.memory.pictures import enlarged, whole_pixels
from farm.worker.memory.planner import Learnt, decode_bytes, encode_pixels, peak_bytes
from farm.worker.memory.profiles import GIB, PIXELS_1024, PROFILES, by_name
from tests.engine_bench import Bench
from tests.fake_models import FakeCheckpoint, FakeModels, spec
from tests.unit.test_memory_encodes import Live

CARD = by_name("24gb")
UNET = Call("denoise", "sdxl", 1, "float16", "sdpa", pixels=0, rows=1)


@pytest.mark.parametrize("scale", [1, 2, 4])
@torch.no_grad()
def test_the_formula_of_a_tile_is_what_shapes_come_to(scale: int) -> None:
    with torch.device("meta"):
        model = ESRGAN(num_filters=64, num_blocks=1, scale=scale).half().eval()
        picture, live = torch.empty(1, 3, 96, 96, dtype=torch.half), Live()
        with live:
            model(picture)
    assert live.peak <= enlarged(96**2, scale) <= 1.3 * live.peak


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_lifted_vae_is_planned_in_its_precision_and_takes_no_more_whole(profile: Any) -> None:
    def learnt(dtype: str) -> Learnt:
        vae = Call("decode", "sdxl", 1, dtype, "whole", pixels=0, rows=1)
        return Learnt(UNET, vae)

    held = replace(profile, vae_tile_over=2 * PIXELS_1024)
    half = whole_pixels(held, "float32")
    twice = 1 if profile.dtype == "float32" else 2
    assert half * twice == whole_pixels(held, held.dtype)
    lifted = decode_bytes(held, half, learnt=learnt("float32"))
    assert lifted == decode_bytes(held, half * twice, learnt=learnt(held.dtype))
    assert encode_pixels(held, "float32") <= half
    above = decode_bytes(held, half + 1, learnt=learnt("float32"))
    assert (above < lifted) == (half > profile.vae_tile**2)


@dataclass
class Guest:
    """Weights of a model between two tiles."""

    bytes: int

    def leave(self) -> bool:
        there, self.bytes = self.bytes > 0, 0
        return there


@pytest.mark.parametrize(("spare", "stays"), [(1.0, True), (0.1, False)])
def test_a_guest_leaves_where_work_was_not_planned_to_fit_beside_it(
    spare: float, stays: bool
) -> None:
    checkpoint: Any = FakeCheckpoint("fake", family="sdxl")
    checkpoint.vae_dtype = "float16"
    models: Any = FakeModels(checkpoint)
    models.bytes = CARD.weights_bytes
    peak = peak_bytes(CARD, "sdxl", PIXELS_1024, 1, weights_bytes=models.bytes, encodes=True)
    guest = Guest(GIB // 2)
    models.guests.append(guest)
    profile = replace(CARD, memory_bytes=int(peak + spare * GIB))
    limits = RowLimits(models, profile)
    assert limits._room.bytes == CARD.weights_bytes + GIB // 2
    with limits.pictures.decoding(checkpoint, PIXELS_1024):
        assert bool(guest.bytes) == stays


def test_where_memory_runs_out_guests_leave_before_all_others() -> None:
    bench = Bench()
    bench.models.idle = 1
    bench.models.guests.append(guest := Guest(GIB))
    left = [1]

    def fault(what: str, _: Any) -> None:
        if what == "encode" and left:
            left.clear()
            raise torch.OutOfMemoryError

    bench.checkpoint.fault = fault
    assert bench.render(spec())
    assert (guest.bytes, bench.models.idle) == (0, 1)


@pytest.mark.parametrize("side", [64, 1024])
def test_what_could_not_be_decoded_in_any_way_is_refused_before_its_next_step(side: int) -> None:
    """Smaller than a tile, and in tiles."""
    bench = Bench()

    def fault(what: str, latent: Any) -> None:
        if what == "decode" and latent.shape[-1] == side // 8:
            if side > 512:
                bench.checkpoint.tile_over = side * side - 1  # as the decoder does
            raise torch.OutOfMemoryError

    bench.checkpoint.fault = fault
    asked = spec("a cat", width=side, height=side)
    for forwards in (asked.steps, 0):
        before = len(bench.checkpoint.forwards)
        job, sibling = bench.add(asked, spec("a dog", 2, width=128))
        bench.run()
        with pytest.raises(DoesNotFit):
            job.future.result(0)
        assert sibling.future.result(0)
        assert len(bench.checkpoint.forwards) - before == forwards + 4

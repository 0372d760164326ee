"""What pictures take on their way to latents: by shapes, by measurement, and in tiles."""

from __future__ import annotations

import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from farm.errors import DoesNotFit
from farm.spec.measurement import Call
from farm.worker.engine.limits import RowLimits
from farm.worker.memory.experience import Experience
from farm.worker.memory.meter import Meter, Taken
from farm.worker.memory.pictures import (
    MIB,
    VAE_IMAGE,
    VAE_PICTURE,
    VAE_PICTURE_TILE,
    VAE_TILED_PICTURE,
)
from farm.worker.memory.planner import (
    Learnt,
    decode_bytes,
    encode_bytes,
    encode_mode,
    peak_bytes,
)
from farm.worker.memory.profiles import GIB, PIXELS_512, PIXELS_1024, MemoryProfile, by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import BUNDLES
from farm.worker.models.parts import build_on_meta, parts_of
from tests.engine_bench import Bench
from tests.fake_models import FakeCheckpoint, FakeModels, spec

CARD = by_name("24gb")
VAE = Call("decode", "sdxl", 83_653_863, "float16", "whole", pixels=0, rows=1)
UNET = replace(VAE, work="denoise", mode="sdpa")


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors made in it that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: Counter[int] = Counter()

    def __torch_dispatch__(self, work: Any, _: Any, args: Any = (), more: Any = None) -> Any:
        made = work(*args, **(more or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.now += 0 if self._held[storage._cdata] else storage.nbytes()
                self._held[storage._cdata] += 1
                weakref.finalize(tensor, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return made

    def _gone(self, key: int, size: int) -> None:
        self._held[key] -= 1
        self.now -= 0 if self._held[key] else size


@pytest.fixture(scope="module")
def vae() -> Any:
    (part,) = (part for part in parts_of("sdxl") if part.name == "vae")
    built: Any = build_on_meta(part, BUNDLES / "sdxl").half()
    built.tile_sample_min_size, built.tile_latent_min_size = 512, 64
    return built


@torch.no_grad()
def peak(vae: Any, side: int, *, tiles: bool = False, back: bool = False) -> int:
    """Activations of the encoder, or ``back`` of the decoder, as counted by shapes."""
    vae.use_tiling = tiles
    shape = (1, 4, side // 8, side // 8) if back else (1, 3, side, side)
    with torch.device("meta"):
        given, live = torch.empty(shape, dtype=torch.half), Live()
        with live:
            made = vae.decode(given)[0] if back else vae.encode(given).latent_dist.mean.float()
    assert made.device.type == "meta"
    return live.peak


def test_the_constants_are_what_shapes_come_to(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Kernels for it hold no scores; on meta they would be counted.
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q)
    )
    assert peak(vae, 1024) == pytest.approx(VAE_PICTURE, rel=0.01)
    assert peak(vae, 1024, back=True) == pytest.approx(VAE_IMAGE, rel=0.01)
    assert peak(vae, 1024, tiles=True) == pytest.approx(
        VAE_PICTURE_TILE + VAE_TILED_PICTURE, rel=0.01
    )


def test_it_is_learnt_apart_from_decoding() -> None:
    experience = Experience()
    learnt = Learnt(UNET, VAE, experience)
    formula = encode_bytes(CARD, PIXELS_1024)
    experience.took(replace(VAE, pixels=PIXELS_1024), 9 * GIB, 0)
    assert decode_bytes(CARD, PIXELS_1024, learnt=learnt) == 9 * GIB
    assert encode_bytes(CARD, PIXELS_1024, learnt=learnt) == formula
    experience.took(replace(VAE, mode="encode", pixels=PIXELS_512), int(formula / 2), 0)
    assert encode_bytes(CARD, PIXELS_1024, learnt=learnt) == pytest.approx(2 * formula)
    tiles = replace(CARD, vae_tile_over=PIXELS_512)
    assert encode_bytes(tiles, PIXELS_1024, learnt=learnt) == encode_bytes(tiles, PIXELS_1024)


def test_the_tiny_decoder_makes_no_encoder_tiny() -> None:
    tiny = replace(CARD, vae="taesd")
    plan = [peak_bytes(tiny, "sd15", PIXELS_1024, 1, encodes=encodes) for encodes in (False, True)]
    assert plan[1] - plan[0] > 800 * MIB


@pytest.mark.parametrize(
    ("memory", "tile_over", "mode"),
    [
        (23 * GIB, PIXELS_1024, "encode"),
        (23 * GIB, PIXELS_1024 - 1, "encode-tiles"),
        (18 * GIB, PIXELS_1024, "encode"),
        (16 * GIB, PIXELS_1024, "encode-tiles"),
    ],
)
def test_it_is_done_in_tiles_where_whole_it_would_not_fit(
    memory: int, tile_over: int, mode: str
) -> None:
    profile = replace(CARD, memory_bytes=memory, vae_tile_over=tile_over)
    assert encode_mode(profile, PIXELS_1024, profile.dtype) == mode


class Limited:
    """Row limits of one fake checkpoint on a card that takes a GiB for all it does."""

    def __init__(self, profile: MemoryProfile = CARD) -> None:
        self.checkpoint: Any = FakeCheckpoint("fake", family="sdxl")
        self.checkpoint.encode_tile_over = profile.vae_tile_over
        self.experience = Experience()
        models: Any = FakeModels(self.checkpoint)
        meter: Any = SimpleNamespace(taking=self.taking)
        self.limits = RowLimits(
            cast(ModelCache, models), profile, experience=self.experience, meter=cast(Meter, meter)
        )

    def taking(self) -> Any:
        return nullcontext(Taken(GIB, 0))


def test_what_one_took_is_remembered_and_what_was_too_much_is_not_tried_whole_again() -> None:
    limited = Limited()
    with limited.limits.pictures.encoding(limited.checkpoint, PIXELS_1024):
        pass
    limited.limits.pictures.encoded(limited.checkpoint, PIXELS_1024, 0.5)
    whole = limited.checkpoint.encode_call(PIXELS_1024)
    assert (whole.mode, limited.experience.of(whole).bytes) == ("encode", GIB)
    with limited.limits.pictures.encoding(limited.checkpoint, PIXELS_1024):
        limited.checkpoint.encode_tile_over = PIXELS_1024 - 1  # as the encoder does
    read_anew: Any = FakeCheckpoint("fake", family="sdxl")
    with limited.limits.pictures.encoding(read_anew, PIXELS_1024):
        assert read_anew.encode_call(PIXELS_1024).mode == "encode-tiles"
    assert read_anew.tile_over == FakeCheckpoint("fake").tile_over


def test_a_job_whose_picture_cannot_be_encoded_is_refused_before_it_runs() -> None:
    """Only where a picture is resized, and not a latent, is one encoded."""
    bench = Bench(experience=(experience := Experience()))
    call = bench.checkpoint.encode_call(128 * 128)
    experience.took(call, bench.core._limits._profile.memory_bytes, 0)
    latent = spec("a cat", hires_scale=2, sampler="Euler")
    picture = latent.model_copy(update={"hires_upscaler": "Lanczos", "seed": 2})
    good, bad = bench.add(latent, picture)
    bench.run()
    assert good.future.result(0).image.shape[:2] == (16, 16)
    with pytest.raises(DoesNotFit, match="128x128"):
        bad.future.result(0)
    assert bench.checkpoint.encoded_pictures == 0

"""The decoder's climb through precisions, and its tiles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from farm.errors import NumericFailure
from farm.worker.models.decoder import SIZES, Decoder

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


class Layer(nn.Module):
    """Holds a weight, which is in another precision while the layer is at work."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.001, dtype=dtype), requires_grad=False)

    def forward(self) -> Tensor:
        return self.weight.clone()


class Vae(nn.Module):
    """Paints the latent's first three channels, eight times as large; overflows as told."""

    def __init__(self, dtype: torch.dtype, finite_in: set[torch.dtype]) -> None:
        super().__init__()
        self.finite_in = finite_in
        self.layer = Layer(dtype)
        self.decoder = SimpleNamespace(up_blocks=self.layer)
        self.config = SimpleNamespace(scaling_factor=0.5)
        self.device = torch.device("cpu")
        self.used: list[tuple[torch.dtype, float, bool]] = []
        self.memory: dict[bool, int] = {}
        self.use_tiling = False

    @property
    def dtype(self) -> torch.dtype:
        return self.layer.weight.dtype

    def using(self, given: Tensor) -> torch.dtype:
        """The precision that it is at work in, which is noted."""
        weight = self.layer()
        assert given.dtype == weight.dtype
        self.used.append((weight.dtype, float(weight), self.use_tiling))
        return weight.dtype

    def decode(self, latent: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        dtype = self.using(latent)
        if latent[0, 0].numel() > self.memory.get(self.use_tiling, 10**9):
            raise torch.OutOfMemoryError("CUDA out of memory")
        image = latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)
        if dtype not in self.finite_in:
            image[0, 0, 0, 0] = float("nan")
        return (image,)

    def encode(self, shown: Tensor) -> Any:
        """The mean of each 8 by 8 pixels, and a fourth channel of zeros."""
        dtype = self.using(shown)
        if shown[0, 0].numel() // 64 > self.memory.get(self.use_tiling, 10**9):
            raise torch.OutOfMemoryError("CUDA out of memory")
        mean = nn.functional.avg_pool2d(shown, 8)
        mean = torch.cat([mean, torch.zeros_like(mean[:, :1])], dim=1)
        if dtype not in self.finite_in:
            mean[0, 0, 0, 0] = float("inf")
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))


def latent(value: float = 0.0, side: int = 2) -> Tensor:
    return torch.full((4, side, side), value)


@pytest.mark.parametrize(
    ("start", "finite_in", "tried"),
    [
        (F16, {F16, BF16, F32}, [F16]),
        (F16, {BF16, F32}, [F16, BF16]),
        (F16, {F32}, [F16, BF16, F32]),
        (BF16, {F32}, [BF16, F32]),
        (F32, {F32}, [F32]),
    ],
)
def test_it_climbs_until_the_picture_is_finite_and_stays_there_after_two(
    start: torch.dtype, finite_in: set[torch.dtype], tried: list[torch.dtype]
) -> None:
    vae = Vae(start, finite_in)
    decoder = Decoder(vae, tile_over=10**9)
    for begun in (start, tried[-1]):
        decoder.decode(latent())
        assert decoder.dtype == begun
    decoder.decode(latent())
    assert [dtype for dtype, _, _ in vae.used] == [*tried, *tried, tried[-1]]
    assert vae.dtype == start


def test_a_strict_picture_does_not_depend_on_who_came_before() -> None:
    vae = Vae(F16, {BF16})
    decoder = Decoder(vae, tile_over=10**9)
    for _ in range(2):
        decoder.decode(latent())
    vae.finite_in.add(F16)
    vae.used.clear()
    for strict in (False, True):
        assert decoder.draft(latent(), strict=strict).finite
        decoder.encode(picture(), strict=strict)
    assert [dtype for dtype, _, _ in vae.used] == [BF16, BF16, F16, F16]
    assert decoder.dtype == BF16


def test_each_rung_is_cast_from_the_loaded_weights() -> None:
    vae = Vae(F16, {BF16})
    decoder = Decoder(vae, tile_over=10**9)
    for _ in range(2):
        decoder.decode(latent())
    vae.finite_in.clear()
    vae.finite_in.add(F32)
    decoder.decode(latent())
    loaded = float(torch.tensor(1.001, dtype=F16))
    coarse = float(torch.tensor(loaded, dtype=BF16))
    assert coarse != loaded
    assert [weight for _, weight, _ in vae.used] == [*[loaded, coarse] * 2, coarse, loaded]


def test_not_even_float32_is_a_numeric_failure_and_nothing_is_remembered() -> None:
    vae = Vae(F16, set())
    decoder = Decoder(vae, tile_over=10**9)
    with pytest.raises(NumericFailure, match="even in float32"):
        decoder.decode(latent())
    assert decoder.dtype == F16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_latent_is_not_the_decoders_fault(bad: float) -> None:
    vae = Vae(F16, {F32})
    decoder = Decoder(vae, tile_over=10**9)
    with pytest.raises(NumericFailure, match="before it is decoded"):
        decoder.decode(latent(bad))
    assert vae.used == []


@pytest.mark.parametrize(
    ("value", "pixel"),
    # scaling factor 0.5: the VAE sees twice the latent; 255 * (x + 1) / 2, cut, not rounded.
    [(0.0, 127), (0.5, 255), (-0.5, 0), (9.0, 255), (-9.0, 0), (0.25, 191)],
)
def test_pixels_are_cut_to_whole_numbers(value: float, pixel: int) -> None:
    pixels = Decoder(Vae(F32, {F32}), tile_over=10**9).decode(latent(value))
    assert (pixels.shape, pixels.dtype) == ((16, 16, 3), torch.uint8)
    assert pixels.unique().tolist() == [pixel]


@pytest.mark.parametrize(("side", "tiled"), [(4, False), (5, True)])
def test_tiles_above_the_limit(side: int, tiled: bool) -> None:
    vae = Vae(F32, {F32})
    Decoder(vae, tile_over=32 * 32).decode(latent(side=side))
    assert [tiling for _, _, tiling in vae.used] == [tiled]


def test_without_memory_it_goes_on_in_tiles_and_remembers_the_size() -> None:
    vae = Vae(F32, {F32})
    vae.memory = {False: 100 * 100}
    decoder = Decoder(vae, tile_over=10**9)
    for side in (120, 120, 128, 100):
        assert decoder.decode(latent(side=side)).shape == (side * 8, side * 8, 3)
    tiled = [tiled for _, _, tiled in vae.used]
    assert tiled == [False, True, True, True, False]


def test_without_memory_beside_other_work_it_stays_whole_for_later() -> None:
    vae = Vae(F32, {F32})
    vae.memory = {False: 10}
    decoder = Decoder(vae, tile_over=10**9)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.draft(latent(side=120), whole=True)
    vae.memory.clear()
    decoder.draft(latent(side=120))
    assert [tiled for _, _, tiled in vae.used] == [False, False]


@pytest.mark.parametrize("side", [120, 64], ids=["tiles do not help", "smaller than a tile"])
def test_what_tiles_cannot_save_is_out_of_memory(side: int) -> None:
    vae = Vae(F32, {F32})
    vae.memory = {False: 10, True: 10}
    with pytest.raises(torch.OutOfMemoryError):
        Decoder(vae, tile_over=10**9).decode(latent(side=side))
    assert len(vae.used) == (2 if side > 64 else 1)


def test_the_grey_picture_of_a_size_is_made_once_while_few_sizes_take_turns() -> None:
    vae = Vae(F32, {F32})
    made: list[int] = []

    def encode(picture: Tensor) -> Any:
        made.append(picture.shape[-1] // 8)
        small = picture[:, :1, ::8, ::8].expand(-1, 4, -1, -1)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=small))

    vae.encode = encode  # type: ignore[method-assign, assignment]
    decoder = Decoder(vae, tile_over=10**9)
    for side in (2, 4, 2, 4, 2):
        assert decoder.unpainted(side, side).shape == (1, 5, side, side)
    assert made == [2, 4]
    for side in range(5, 5 + SIZES):
        decoder.unpainted(side, side)
    assert len(decoder._unpainted) == SIZES
    decoder.unpainted(2, 2)
    assert made[-1] == 2
    decoder.rest()
    assert not decoder._unpainted


def picture(value: float = 0.5, side: int = 16) -> Tensor:
    return torch.full((3, side, side), value)


def test_a_picture_climbs_as_a_latent_does_and_is_scaled() -> None:
    vae = Vae(F16, {F32})
    decoder = Decoder(vae, tile_over=10**9)
    made = decoder.encode(picture(0.5, side=20))
    assert [dtype for dtype, _, _ in vae.used] == [F16, BF16, F32]
    assert made.shape == (4, 2, 2)  # what is no whole place is left out
    assert made[:3].eq(0.25).all()
    decoder.encode(picture())
    assert decoder.dtype == F32
    vae.finite_in.clear()
    with pytest.raises(NumericFailure, match="even in float32"):
        decoder.encode(picture())


def test_a_picture_without_memory_is_encoded_in_tiles_and_only_that_is_remembered() -> None:
    vae = Vae(F32, {F32})
    vae.memory = {False: 10_000, True: 10**9}
    decoder = Decoder(vae, tile_over=10**9)
    for _ in range(2):
        decoder.encode(picture(side=1024))
    decoder.encode(picture(side=512))
    assert [tiled for _, _, tiled in vae.used] == [False, True, True, False]
    assert decoder.tile_over == 10**9


def test_a_picture_above_the_limit_is_encoded_in_tiles_where_taesd_decodes() -> None:
    vae = Vae(F32, {F32})
    tiny = nn.Conv2d(4, 3, 1)
    decoder = Decoder(vae, tile_over=512 * 512, tiny=tiny)
    decoder.encode(picture(side=520))
    assert [tiled for _, _, tiled in vae.used] == [True]

"""Latents to pixels and back, in the lowest precision that does not overflow."""

from __future__ import annotations

import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from farm.errors import NumericFailure
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.models.precision import LADDER, RESCUES, computing_in
from farm.worker.models.wholes import Wholes

FACTOR = 8
ENDLESS = 2**62
SIZES = 8
"""Sizes whose grey picture is remembered, those used last: 10 MiB in all at 2048x2048."""


@dataclass(frozen=True)
class Draft:
    """A decoded picture that is on the device, which may still be at work on it.

    Attributes:
        pixels: [H, W, 3] uint8.
        finite: one bool: whether the picture was. It travels with the pixels: no pass of its own
            over the picture, and no earlier wait for the device.
        higher: precisions to try one after the other where it is not.
    """

    pixels: Tensor
    finite: Tensor
    higher: Sequence[torch.dtype]


class Decoder:
    """A checkpoint's VAE.

    Many SDXL VAEs overflow in float16: the picture turns to NaN. Such a latent is decoded again
    in bfloat16 (same memory, range of float32), then in float32; what saved two pictures is where
    the next ones begin. One alone may have been a bad latent, and bfloat16 has fewer shades.
    ``strict`` pictures always begin in the loaded precision, so that they do not depend on who came
    before. Weights are cast layer by layer from the loaded ones, so there is never a second VAE.

    Args:
        vae: an ``AutoencoderKL``.
        tile_over: pixels above which to decode in tiles, at all or in a precision, see
            :func:`farm.worker.memory.pictures.whole_pixels`.
        encode_tile_over: the same for pictures on their way to latents; by default as many.
        tile: pixels of a tile's side. diffusers' own is the size the model was trained at, 1024
            for SDXL, which saves nothing up to 1024.
        tiny: a TAESD decoder, which makes the pictures instead while they fit and are finite.
        saved: how many pictures each higher precision has saved; it grows here, and outlives the
            weights.
    """

    def __init__(
        self,
        vae: Any,
        *,
        tile_over: int | Callable[[torch.dtype], int],
        encode_tile_over: Callable[[torch.dtype], int] | None = None,
        tile: int = 512,
        tiny: nn.Module | None = None,
        saved: Counter[torch.dtype] | None = None,
    ) -> None:
        vae.tile_sample_min_size = tile
        vae.tile_latent_min_size = tile // FACTOR
        self._vae = vae
        self._loaded: torch.dtype = vae.dtype
        self._tile = tile
        self._tiny = tiny
        planned = tile_over if callable(tile_over) else lambda _: tile_over
        self._made = Wholes(planned, tile)
        self._read = Wholes(encode_tile_over or planned, tile)
        self._sketched = ENDLESS
        self._saved = Counter[torch.dtype]() if saved is None else saved
        self._unpainted: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    @property
    def dtype(self) -> torch.dtype:
        """The precision that pictures begin in."""
        if not self._saved:
            return self._loaded
        enough = (dtype for dtype, pictures in self._saved.items() if pictures >= RESCUES)
        return max((self._loaded, *enough), key=LADDER.index)

    @property
    def tile_over(self) -> int:
        """Pixels above which pictures that begin now are decoded in tiles; lower than it was once
        memory ran out in one."""
        return self._sketched if self._tiny else self._made[self.dtype]

    @tile_over.setter
    def tile_over(self, pixels: int) -> None:
        if self._tiny:
            self._sketched = pixels
        else:
            self._made[self.dtype] = pixels

    @property
    def encode_tile_over(self) -> int:
        """The same for pictures on their way to latents."""
        return self._read[self.dtype]

    @encode_tile_over.setter
    def encode_tile_over(self, pixels: int) -> None:
        self._read[self.dtype] = pixels

    def rest(self) -> None:
        """Let go of what was made by the weights."""
        self._unpainted.clear()

    def draft(self, latent: Tensor, *, whole: bool = False, strict: bool = False) -> Draft:
        """Queue the decoding of [4, h, w] float32 in the precision that pictures begin in.

        Waits for nothing. Where memory runs out it is decoded in tiles, as are all of its size
        and above from then on.

        Args:
            whole: there is other work beside it, or memory that could be had, so that running
                out of memory says nothing of its size, and is raised.
            strict: see :class:`Decoder`.
        """
        (dtype, *_), pixels = self._ladder(strict), _pixels(latent)
        if self._tiny and pixels <= self._sketched:
            try:
                return self._tinily(self._tiny, latent, self._ladder(strict))
            except Exception as error:
                # It knows no tiles.
                if whole or pixels <= self._tile**2 or not out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)
            self._sketched = pixels - 1
        work = partial(self._drafted, dtype, latent)
        return self._made.attempt(work, dtype, pixels, whole=whole)

    def decode(self, latent: Tensor, *, after: Draft | None = None, whole: bool = False) -> Tensor:
        """[4, h, w] float32 to [8h, 8w, 3] uint8 on the CPU, in tiles as :meth:`draft`.

        Args:
            after: a draft that was not finite; what made it is not tried again.
            whole: see :meth:`draft`.

        Raises:
            NumericFailure: the latent, or the image even in float32, is not finite.
        """
        if not bool(torch.isfinite(latent).all()):
            raise NumericFailure("The latent holds NaN or infinity before it is decoded.")
        if self._tiny and after is None:
            after = self.draft(latent, whole=whole)
            if bool(after.finite):
                return after.pixels.cpu()

        def picture(dtype: torch.dtype) -> Tensor | None:
            work = partial(self._drafted, dtype, latent)
            draft = self._made.attempt(work, dtype, _pixels(latent), whole=whole)
            pixels = draft.pixels.cpu()
            return pixels if bool(draft.finite) else None

        return self._climb(picture, after.higher if after else self._ladder())

    def encode(self, picture: Tensor, *, strict: bool = False) -> Tensor:
        """[3, H, W] in -1..1 to the mean latent, [4, H/8, W/8] float32 on the VAE's device, rounded
        down. Where memory runs out in tiles, as are all of its size and above from then on.

        webui draws from the distribution around the mean instead, by a generator that it shares
        with all else, so that its latent is another each time.

        Raises:
            NumericFailure: it is not finite even in float32.
        """

        def latent(dtype: torch.dtype) -> Tensor | None:
            work = partial(self._latent, dtype, picture)
            return self._read.attempt(work, dtype, picture[0].numel())

        return self._climb(latent, self._ladder(strict))

    def unpainted(self, height: int, width: int) -> Tensor:
        """What an inpainting model sees where nothing is given, as in webui's txt2img.

        Args:
            height, width: of the latent.

        Returns:
            [1, 5, height, width] float32: a mask of ones, and the latent of a grey picture.

        Raises:
            NumericFailure: the VAE cannot encode even that.
        """
        size = height, width
        if size not in self._unpainted:
            grey = torch.zeros(3, height * FACTOR, width * FACTOR)
            latent = self.encode(grey)[None]
            while len(self._unpainted) >= SIZES:
                self._unpainted.popitem(last=False)
            self._unpainted[size] = torch.cat([torch.ones_like(latent[:, :1]), latent], dim=1)
        self._unpainted.move_to_end(size)
        return self._unpainted[size]

    def _ladder(self, strict: bool = False) -> Sequence[torch.dtype]:
        """The precision that a picture begins in, and those above it."""
        return LADDER[LADDER.index(self._loaded if strict else self.dtype) :]

    def _climb(
        self, attempt: Callable[[torch.dtype], Tensor | None], ladder: Sequence[torch.dtype]
    ) -> Tensor:
        """What the lowest precision makes in which ``attempt`` does not give None."""
        for dtype in ladder:
            made = attempt(dtype)
            if made is not None:
                if LADDER.index(dtype) > LADDER.index(self.dtype):
                    self._saved[dtype] += 1
                return made
        raise NumericFailure(
            "The VAE gives NaN or infinity even in float32.",
            remedy="Lower the guidance scale, or use another checkpoint.",
        )

    @contextmanager
    def _lifted(self, dtype: torch.dtype) -> Iterator[None]:
        """In the block the VAE computes in this precision."""
        if dtype == self._loaded:
            yield
            return
        # diffusers goes on in the precision of this weight, whatever the layers before it make.
        first = next(self._vae.decoder.up_blocks.parameters())
        held = first.data
        first.data = held.to(dtype)
        try:
            with computing_in(self._vae, dtype):
                yield
        finally:
            first.data = held

    def _tinily(self, tiny: nn.Module, latent: Tensor, higher: Sequence[torch.dtype]) -> Draft:
        weight = next(tiny.parameters())
        return _shown(tiny(latent[None].to(weight))[0], higher)

    def _drafted(self, dtype: torch.dtype, latent: Tensor) -> Draft:
        vae = self._vae
        vae.use_tiling = _pixels(latent) > self._made[dtype]
        scaled = latent[None].to(vae.device) / vae.config.scaling_factor
        with self._lifted(dtype):
            made = vae.decode(scaled.to(dtype), return_dict=False)[0][0]
        return _shown(made, LADDER[LADDER.index(dtype) + 1 :])

    def _latent(self, dtype: torch.dtype, picture: Tensor) -> Tensor | None:
        vae = self._vae
        vae.use_tiling = picture[0].numel() > self._read[dtype]
        shown = picture[None].to(vae.device, dtype)
        with self._lifted(dtype):
            latent: Tensor = vae.encode(shown).latent_dist.mean[0].float()
        return latent * vae.config.scaling_factor if bool(torch.isfinite(latent).all()) else None


def _pixels(latent: Tensor) -> int:
    """Of the picture that it becomes."""
    return latent[0].numel() * FACTOR**2


def _shown(image: Tensor, higher: Sequence[torch.dtype]) -> Draft:
    """[3, H, W] from -1 to 1, as a picture. The cast truncates, as webui's does."""
    image = image.float()
    shown = ((image + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    return Draft(shown.permute(1, 2, 0).contiguous(), torch.isfinite(image).all(), higher)

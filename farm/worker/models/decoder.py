"""Latents to pixels and back, in the lowest precision that does not overflow."""

from __future__ import annotations

import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from farm.errors import NumericFailure
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.models.precision import LADDER, RESCUES

FACTOR = 8
ENDLESS = 2**62
SIZES = 8
"""Sizes whose grey picture is remembered, those used last: 10 MiB in all at 2048x2048."""

T = TypeVar("T")


@dataclass(frozen=True)
class Draft:
    """A decoded picture that is on the device, which may still be at work on it.

    Attributes:
        pixels: [H, W, 3] uint8.
        finite: one bool: whether the picture was. It travels with the pixels: no pass of its own
            over the picture, and no earlier wait for the device.
        vae: what makes it. Kept until it has, lest its memory goes to others before.
    """

    pixels: Tensor
    finite: Tensor
    vae: Any


class Decoder:
    """A checkpoint's VAE.

    Many SDXL VAEs overflow in float16: the picture turns to NaN. Such a latent is decoded again
    in bfloat16 (same memory, range of float32), then in float32; what saved two pictures is where
    the next ones begin, until the weights leave the device. One alone may have been a bad latent,
    and bfloat16 has fewer shades. ``strict`` pictures always begin in the loaded precision, so
    that they do not depend on who came before. Weights are always cast from the loaded ones,
    never from a rung in between.

    Args:
        vae: an ``AutoencoderKL``.
        tile_over: pixels above which to decode in tiles.
        tile: pixels of a tile's side. diffusers' own is the size the model was trained at, 1024
            for SDXL, which saves nothing up to 1024.
        tiny: a TAESD decoder, which makes the pictures instead while they fit and are finite.

    Attributes:
        tile_over: lower than it was once memory ran out in a smaller picture.
        encode_tile_over: the same for pictures on their way to latents.
    """

    def __init__(
        self, vae: Any, *, tile_over: int, tile: int = 512, tiny: nn.Module | None = None
    ) -> None:
        vae.tile_sample_min_size = tile
        vae.tile_latent_min_size = tile // FACTOR
        self._loaded = vae
        self._vae = vae
        self._tile = tile
        self._tiny = tiny
        self.tile_over = tile_over if tiny is None else ENDLESS
        self.encode_tile_over = tile_over
        self._saved: Counter[torch.dtype] = Counter()
        self._unpainted: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    @property
    def dtype(self) -> torch.dtype:
        """The precision that pictures begin in."""
        dtype: torch.dtype = self._vae.dtype
        return dtype

    def rest(self) -> None:
        """Let go of what was made from the loaded weights."""
        self._vae = self._loaded
        self._saved.clear()
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
        vae = self._loaded if strict else self._vae
        return self._in_tiles_if_need_be(latent, lambda: self._first(vae, latent), whole=whole)

    def decode(self, latent: Tensor, *, after: Draft | None = None, whole: bool = False) -> Tensor:
        """[4, h, w] float32 to [8h, 8w, 3] uint8 on the CPU, in tiles as :meth:`draft`.

        Args:
            after: a draft that was not finite; precisions up to its own are not tried again.
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
        tried = after.vae.dtype if after and after.vae is not self._tiny else None
        return self._in_tiles_if_need_be(
            latent,
            lambda: self._climb(lambda vae: self._pixels(vae, latent), after=tried),
            whole=whole,
        )

    def _in_tiles_if_need_be(self, latent: Tensor, work: Callable[[], T], *, whole: bool) -> T:
        pixels = latent[0].numel() * FACTOR**2
        try:
            return work()
        except Exception as error:
            large = self._tile**2 < pixels <= self.tile_over
            if whole or not large or not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        self.tile_over = pixels - 1
        return work()

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

    def encode(self, picture: Tensor, *, strict: bool = False) -> Tensor:
        """[3, H, W] in -1..1 to the mean latent, [4, H/8, W/8] float32 on the VAE's device, rounded
        down. Where memory runs out in tiles, as are all of its size and above from then on.

        webui draws from the distribution around the mean instead, by a generator that it shares
        with all else, so that its latent is another each time.

        Raises:
            NumericFailure: it is not finite even in float32.
        """
        pixels = picture[0].numel()
        try:
            return self._climb(lambda vae: self._latent(vae, picture), strict=strict)
        except Exception as error:
            most = self.encode_tile_over
            if not out_of_memory(error) or pixels > most or pixels <= self._tile**2:
                raise
            traceback.clear_frames(error.__traceback__)
        self.encode_tile_over = pixels - 1
        return self._climb(lambda vae: self._latent(vae, picture), strict=strict)

    def _climb(
        self,
        attempt: Callable[[Any], Tensor | None],
        *,
        after: torch.dtype | None = None,
        strict: bool = False,
    ) -> Tensor:
        """What the lowest precision makes, above ``after``, in which ``attempt`` does not give
        None."""
        begin = self._loaded.dtype if strict else self.dtype
        first = LADDER.index(begin) if after is None else LADDER.index(after) + 1
        for dtype in LADDER[first:]:
            vae = self._in(dtype)
            made = attempt(vae)
            if made is not None:
                self._saves(vae)
                return made
        raise NumericFailure(
            "The VAE gives NaN or infinity even in float32.",
            remedy="Lower the guidance scale, or use another checkpoint.",
        )

    def _saves(self, vae: Any) -> None:
        """A picture was whole in the precision of ``vae``: remember it if it took a higher one."""
        if LADDER.index(vae.dtype) <= LADDER.index(self.dtype):
            return
        self._saved[vae.dtype] += 1
        if self._saved[vae.dtype] >= RESCUES:
            self._vae = vae

    def _in(self, dtype: torch.dtype) -> Any:
        for here in (self._vae, self._loaded):
            if here.dtype == dtype:
                return here
        # Not the model's own .to, which warns of modules to keep in float32 and names none.
        return nn.Module.to(deepcopy(self._loaded), dtype)

    def _pixels(self, vae: Any, latent: Tensor) -> Tensor | None:
        """The picture, or None where it is not finite."""
        draft = self._drafted(vae, latent)
        pixels = draft.pixels.cpu()
        return pixels if bool(draft.finite) else None

    def _first(self, vae: Any, latent: Tensor) -> Draft:
        """By TAESD, unless it ran out of memory at this size: it knows no tiles."""
        if self._tiny is None or latent[0].numel() * FACTOR**2 > self.tile_over:
            return self._drafted(vae, latent)
        weight = next(self._tiny.parameters())
        return _shown(self._tiny(latent[None].to(weight))[0], self._tiny)

    def _drafted(self, vae: Any, latent: Tensor) -> Draft:
        vae.use_tiling = latent[0].numel() * FACTOR**2 > self.tile_over
        scaled = latent[None].to(vae.device) / vae.config.scaling_factor
        return _shown(vae.decode(scaled.to(vae.dtype), return_dict=False)[0][0], vae)

    def _latent(self, vae: Any, picture: Tensor) -> Tensor | None:
        vae.use_tiling = picture[0].numel() > self.encode_tile_over
        shown = picture[None].to(vae.device, vae.dtype)
        latent: Tensor = vae.encode(shown).latent_dist.mean[0].float()
        return latent * vae.config.scaling_factor if bool(torch.isfinite(latent).all()) else None


def _shown(image: Tensor, vae: Any) -> Draft:
    """[3, H, W] from -1 to 1, as a picture. The cast truncates, as webui's does."""
    image = image.float()
    shown = ((image + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
    return Draft(shown.permute(1, 2, 0).contiguous(), torch.isfinite(image).all(), vae)

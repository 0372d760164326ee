"""Latents to pixels, in the lowest precision that does not overflow."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from farm.errors import NumericFailure

LADDER = (torch.float16, torch.bfloat16, torch.float32)
FACTOR = 8
TILE = 512


class Decoder:
    """A checkpoint's VAE.

    Many SDXL VAEs overflow in float16: the picture turns to NaN. Such a latent is decoded again
    in bfloat16 (same memory, range of float32), then in float32; what worked is used from then
    on. Weights are always cast from the loaded ones, never from a rung in between.

    Args:
        vae: an ``AutoencoderKL``.
        tile_over: pixels above which to decode in tiles of 512. diffusers' own tile is the
            size the model was trained at, 1024 for SDXL, which saves nothing up to 1024.
    """

    def __init__(self, vae: Any, *, tile_over: int) -> None:
        vae.tile_sample_min_size = TILE
        vae.tile_latent_min_size = TILE // FACTOR
        self._loaded = vae
        self._vae = vae
        self._tile_over = tile_over

    @property
    def dtype(self) -> torch.dtype:
        """The precision that worked last."""
        dtype: torch.dtype = self._vae.dtype
        return dtype

    def decode(self, latent: Tensor) -> Tensor:
        """[4, h, w] float32 to [8h, 8w, 3] uint8 on the CPU; raises :class:`NumericFailure`."""
        if not bool(torch.isfinite(latent).all()):
            raise NumericFailure("The latent holds NaN or infinity before it is decoded.")
        for dtype in LADDER[LADDER.index(self.dtype) :]:
            vae = self._vae if dtype == self.dtype else self._cast(dtype)
            pixels = self._pixels(vae, latent)
            if pixels is not None:
                self._vae = vae
                return pixels
        raise NumericFailure(
            "The VAE gives NaN or infinity even in float32.",
            remedy="Lower the guidance scale, or use another checkpoint.",
        )

    def _cast(self, dtype: torch.dtype) -> Any:
        # Not the model's own .to, which warns of modules to keep in float32 and names none.
        return nn.Module.to(deepcopy(self._loaded), dtype)

    def _pixels(self, vae: Any, latent: Tensor) -> Tensor | None:
        """The picture, or None where it is not finite.

        The cast truncates, as webui's does. The flag travels with the pixels: no pass of its
        own over the picture, and no earlier wait for the device.
        """
        vae.use_tiling = latent[0].numel() * FACTOR**2 > self._tile_over
        scaled = latent[None].to(vae.device) / vae.config.scaling_factor
        image = vae.decode(scaled.to(vae.dtype), return_dict=False)[0][0].float()
        shown = ((image + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
        finite = torch.isfinite(image).all()
        pixels: Tensor = shown.permute(1, 2, 0).contiguous().cpu()
        return pixels if bool(finite) else None

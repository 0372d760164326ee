"""Latents and pictures at another size, as webui 1.8 resizes them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

_MODES = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
"""How latents are interpolated, and whether against aliases."""
_FILTERS = {
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}
"""How pictures are enlarged. There is nothing for None."""


def resize_latent(latent: Tensor, width: int, height: int, upscaler: str) -> Tensor:
    """[4, h, w] to [4, height, width], in float32 on its device.

    Latents are as samplers have them, scaled to a variance of about 1.
    """
    mode, antialias = _MODES[upscaler]
    size = (height, width)
    resized: Tensor = interpolate(latent[None].float(), size, mode=mode, antialias=antialias)
    return resized[0]


def resize_picture(picture: Tensor, width: int, height: int, upscaler: str) -> Tensor:
    """[h, w, 3] uint8 to [height, width, 3] on the CPU.

    An upscaler enlarges by one factor until the picture fills the size, to a multiple of 8;
    Lanczos does the rest, and all of a picture that is made smaller.
    """
    image = Image.fromarray(picture.numpy())
    scale = max(width / image.width, height / image.height)
    if scale > 1 and upscaler in _FILTERS:
        full = int(image.width * scale), int(image.height * scale)
        even = int(image.width * scale // 8 * 8), int(image.height * scale // 8 * 8)
        if image.width < even[0] or image.height < even[1]:
            image = image.resize(full, _FILTERS[upscaler])
        image = _exactly(image, even)
    return torch.from_numpy(np.array(_exactly(image, (width, height))))


def _exactly(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)

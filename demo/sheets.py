"""Pictures side by side in one image."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Pictures [n, 3, h, w] from -1 to 1 in rows of ``columns``, on white."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    board = torch.ones(3, rows * height, columns * width)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        board[:, top : top + height, left : left + width] = picture
    pixels = ((board + 1) * 127.5).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())

"""Smaller versions of images."""

from __future__ import annotations

from io import BytesIO

from PIL import Image


def width_of(data: bytes) -> int:
    """Pixels; reads the header only."""
    with Image.open(BytesIO(data)) as image:
        return image.width


def scaled(data: bytes, width: int) -> bytes:
    """The image as WebP, ``width`` pixels wide, its shape kept."""
    with Image.open(BytesIO(data)) as image:
        height = max(1, round(image.height * width / image.width))
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    out = BytesIO()
    small.save(out, "WEBP", quality=85)
    return out.getvalue()

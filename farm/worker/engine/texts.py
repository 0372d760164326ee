"""Encoded texts, kept by a byte budget."""

from __future__ import annotations

from typing import TypeAlias

from farm.worker.engine.kept import Kept
from farm.worker.engine.requests import EncodeText
from farm.worker.models.text import TextEncoding

TextCache: TypeAlias = Kept[EncodeText, TextEncoding]
"""The texts used last, in device memory."""


def text_bytes(text: TextEncoding) -> int:
    """Device memory that an encoded text takes."""
    return text.tokens.nbytes + (0 if text.pooled is None else text.pooled.nbytes)

"""Prompts to conditioning: chunks of 75 tokens, each encoded on its own."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TextEncoding:
    """A prompt as the UNet reads it.

    Attributes:
        tokens: [1, 77*k, C], one block of 77 for each chunk of the prompt.
        pooled: [1, P], the summary of the first chunk; None for SD1.5.
    """

    tokens: Tensor
    pooled: Tensor | None

"""Precisions, the quickest first, and computing in one that weights are not held in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LADDER = (torch.float16, torch.bfloat16, torch.float32)
"""float16 overflows beyond 65504. bfloat16 has the range of float32 in the memory of float16."""
RESCUES = 2
"""Images of a checkpoint that overflow before others begin in the precision that saved them."""


@dataclass(frozen=True, slots=True)
class Rung:
    """What a UNet computes in.

    Attributes:
        dtype: all but the scores of its attention.
        scores: queries, keys, and what becomes of them.
    """

    dtype: torch.dtype
    scores: torch.dtype

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.scores)]
        return names[0] if self.dtype == self.scores else " with attention in ".join(names)


def rungs(dtype: torch.dtype) -> tuple[Rung, ...]:
    """What a UNet whose weights are held in ``dtype`` may compute in, the quickest first.

    Of float16 attention is what overflows first, as its scores are products of activations.
    """
    held, *higher = (Rung(each, each) for each in LADDER[LADDER.index(dtype) :])
    attentive = [Rung(dtype, torch.float32)] if dtype == torch.float16 else []
    return (held, *attentive, *higher)


@contextmanager
def computing_in(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """In the block ``model`` computes in ``dtype``, whatever its weights are held in.

    Each layer's weights are cast as it runs and dropped after it, so that it takes the memory of
    one layer, and the weights stay bit for bit what they were. Its inputs must be in ``dtype``.
    """
    held: dict[nn.Parameter, Tensor] = {}

    def cast(layer: nn.Module, _: object) -> None:
        for weight in layer.parameters(recurse=False):
            held[weight] = weight.data
            weight.data = weight.data.to(dtype)

    def restore(layer: nn.Module, _: object, __: object) -> None:
        for weight in layer.parameters(recurse=False):
            if weight in held:
                weight.data = held.pop(weight)

    layers = [layer for layer in model.modules() if any(True for _ in layer.parameters(False))]
    hooks = [layer.register_forward_pre_hook(cast) for layer in layers]
    # First of all hooks, so that those who lent the layer its weights find them as they were.
    hooks += [
        layer.register_forward_hook(restore, prepend=True, always_call=True) for layer in layers
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, data in held.items():
            weight.data = data

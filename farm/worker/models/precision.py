"""Precisions, the quickest first, and computing in one that weights are not held in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LADDER = (torch.float16, torch.bfloat16, torch.float32)
"""float16 overflows beyond 65504. bfloat16 has the range of float32 in the memory of float16."""


def above(dtype: torch.dtype, rungs: int) -> torch.dtype:
    """The precision ``rungs`` higher than ``dtype``, at most float32."""
    return LADDER[min(LADDER.index(dtype) + rungs, len(LADDER) - 1)]


def rungs_above(dtype: torch.dtype) -> int:
    """How many precisions are higher than ``dtype``."""
    return len(LADDER) - 1 - LADDER.index(dtype)


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

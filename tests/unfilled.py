"""Operators of the pretended card that take memory and compute next to nothing.

What full-size models take of a card is a question of sizes alone. So an operator on large tensors
gives one of the right shape, in memory that nobody has written to and that therefore costs the
host nothing, and a copy of many bytes copies none. Small tensors are computed as ever: flags,
schedules, and pictures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.pretended_kernels import Kernels

SMALL = 16 * 2**20
"""Most bytes of a tensor that is computed: a float32 picture of 1024x1024 pixels and a little."""
WEIGHT = 4 * 2**20
"""Most bytes of memory that something is copied into as it is: larger ones are weights."""
HEAVY = (
    "addmm",
    "baddbmm",
    "bmm",
    "convolution",
    "linear",
    "mm",
    "native_group_norm",
    "native_layer_norm",
    "scaled_dot_product_attention",
)
"""Operators that are never computed."""


class Unfilled(Kernels):
    """In place of :class:`Kernels`."""

    def _computed(self, op: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        tensors: dict[int, tuple[Tensor, Tensor]] = {}

        def shaped(value: Any) -> Any:
            if isinstance(value, Tensor):
                there = torch.empty_strided(
                    value.size(), value.stride(), dtype=value.dtype, device="meta"
                )
                tensors[id(there)] = there, value
                return there
            if isinstance(value, list | tuple):
                return type(value)(shaped(one) for one in value)
            return value

        def unfilled(value: Any) -> Any:
            if isinstance(value, Tensor):
                known = tensors.get(id(value))
                return known[1] if known else _zeros(value)
            if isinstance(value, list | tuple):
                return type(value)(unfilled(one) for one in value)
            return value

        shapes = shaped(args), {name: shaped(value) for name, value in options.items()}
        most = max((one.nbytes for one, _ in tensors.values()), default=0)
        if most <= SMALL and op.__name__.partition(".")[0] not in HEAVY:
            return op(*args, **options)
        return unfilled(op(*shapes[0], **shapes[1]))

    def _filled(self, target: Tensor, source: Tensor) -> None:
        weight = target.untyped_storage().nbytes() > WEIGHT and target.dtype == source.dtype
        if not weight:
            target.copy_(source)


def _zeros(like: Tensor) -> Tensor:
    """Zeros that take no memory until they are touched, where there are many of them."""
    extent = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True))
    memory = np.zeros(extent * like.itemsize if like.numel() else 0, dtype=np.uint8)
    return torch.from_numpy(memory).view(like.dtype).as_strided(like.size(), like.stride())

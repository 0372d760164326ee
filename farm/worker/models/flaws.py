"""Weights that are no numbers, found in a file's bytes while these are in a processor's cache.

In every floating point format infinity and NaN are the largest of all when their bits are read as
an integer. So the greatest of a block, once as signed and once as unsigned integers, tells whether
any value in it is broken: two passes at the speed of a cache, where ``isfinite`` makes several in
memory. What becomes infinite in a lower precision is found alike, by a lower bound.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def flaws(block: Tensor, stored: torch.dtype, kept: torch.dtype) -> int:
    """How many values are NaN or infinite once they are kept.

    Args:
        block: [n] uint8 on the CPU, whole values one after the other.
        stored, kept: floating point formats of the bytes, and of what is made of them.
    """
    numbers: Any = block.numpy()
    bits, bound = 8 * stored.itemsize, _bound(stored, kept)
    signed = numbers.view(f"i{stored.itemsize}").max(initial=0)
    unsigned = numbers.view(f"u{stored.itemsize}").max(initial=0)
    if signed < bound and unsigned < bound + 2 ** (bits - 1):
        return 0
    return int((~block.view(stored).to(kept).isfinite()).sum())


@lru_cache
def _bound(stored: torch.dtype, kept: torch.dtype) -> int:
    """The bits of the smallest positive value that is not finite once it is kept."""

    def broken(bits: int) -> bool:
        value = torch.tensor([bits], dtype=_WORDS[stored.itemsize]).view(stored).to(kept)
        return not bool(value.isfinite())

    last = 2 ** (8 * stored.itemsize - 1) - 1
    return bisect_left(range(last), True, hi=last, key=broken)

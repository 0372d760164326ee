"""Philox, the generator of NVIDIA's cards: the same numbers without one."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words: TypeAlias = NDArray[np.uint64]
"""Words of 32 bits, each in 64, so that they can be multiplied."""

ROUNDS = 10
BLOCK = 16_384
"""Numbers drawn at a time: what they take stays in a core's cache, and half the time goes."""

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

# curand's constants are single precision; webui rounds these two, and computes in double.
_STEP = float(np.float32(2.3283064e-10))
_ANGLE_STEP = float(np.float32(2.3283064e-10 * 6.2831855))


def philox(counters: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        counters: [4, N]; they become the random words.
        key: two words of 32 bits.

    Returns:
        [4, N] random words.
    """
    a, b, c, d = counters
    low, high = key
    first, third = np.empty_like(a), np.empty_like(a)
    # In place, which halves the time: an SDE sampler draws two dozen times a step.
    for _ in range(ROUNDS):
        np.multiply(a, _MULTIPLIERS[0], out=first)
        np.multiply(c, _MULTIPLIERS[1], out=third)
        np.right_shift(third, _HALF, out=a)
        a ^= b
        a ^= np.uint64(low)
        np.right_shift(first, _HALF, out=c)
        c ^= d
        c ^= np.uint64(high)
        np.bitwise_and(third, _LOW, out=b)
        np.bitwise_and(first, _LOW, out=d)
        low, high = (low + _KEY_STEPS[0]) & 0xFFFFFFFF, (high + _KEY_STEPS[1]) & 0xFFFFFFFF
    return counters


def normal(seed: int, call: int, count: int) -> Tensor:
    """``count`` standard normal numbers, as ``torch.randn`` on a card draws them. Float32.

    Number i comes from stream i, whose ``call``-th block of four words this is; of the pair that
    Box and Muller's method makes of two words, it is the first. That holds for as many numbers
    as a card has threads, at least 100 000 or so; beyond, cards differ from each other.
    """
    key = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    made = torch.empty(count)
    for first in range(0, count, BLOCK):
        block = made[first : first + BLOCK]
        counters = np.zeros((4, len(block)), dtype=np.uint64)
        counters[0] = call
        counters[2] = np.arange(first, first + len(block))
        block.copy_(_box_muller(philox(counters, key)))
    return made


def _box_muller(words: Words) -> Tensor:
    """In double precision. torch's sines and logarithms take a third of numpy's time."""
    u, v = (torch.from_numpy(row.view(np.int64)).double() for row in words[:2])
    radius = u.mul_(_STEP).add_(_STEP / 2).log_().mul_(-2.0).sqrt_()
    return radius.mul_(v.mul_(_ANGLE_STEP).add_(_ANGLE_STEP / 2).sin_())

"""Philox, the generator of NVIDIA's cards: the same numbers without one."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Words: TypeAlias = NDArray[np.uint64]
"""Words of 32 bits, each in 64, so that they can be multiplied."""

ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)

# curand's constants are single precision; webui rounds these two, and computes in double.
_STEP = float(np.float32(2.3283064e-10))
_ANGLE_STEP = float(np.float32(2.3283064e-10 * 6.2831855))


def philox(counters: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        counters: [4, N].
        key: two words of 32 bits.

    Returns:
        [4, N] random words.
    """
    a, b, c, d = counters
    low, high = key
    for _ in range(ROUNDS):
        first, third = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (third >> _HALF) ^ b ^ np.uint64(low), third & _LOW
        c, d = (first >> _HALF) ^ d ^ np.uint64(high), first & _LOW
        low, high = (low + _KEY_STEPS[0]) & 0xFFFFFFFF, (high + _KEY_STEPS[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, d])


def normal(seed: int, call: int, count: int) -> NDArray[np.float32]:
    """``count`` standard normal numbers, as ``torch.randn`` on a card draws them.

    Number i comes from stream i, whose ``call``-th block of four words this is; of the pair that
    Box and Muller's method makes of two words, it is the first. That holds for as many numbers
    as a card has threads, at least 100 000 or so; beyond, cards differ from each other.
    """
    counters = np.zeros((4, count), dtype=np.uint64)
    counters[0] = call
    counters[2] = np.arange(count)
    words = philox(counters, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    u = words[0] * _STEP + _STEP / 2
    v = words[1] * _ANGLE_STEP + _ANGLE_STEP / 2
    made: NDArray[np.float64] = np.sqrt(-2.0 * np.log(u)) * np.sin(v)
    return made.astype(np.float32)

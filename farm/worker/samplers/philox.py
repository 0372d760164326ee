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

_FIRST, _THIRD = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_LOW, _HALF = np.uint64(_WORD), np.uint64(32)

# curand's constants are single precision; webui rounds these two, and computes in double.
_STEP = float(np.float32(2.3283064e-10))
_ANGLE_STEP = float(np.float32(2.3283064e-10 * 6.2831855))


def philox(call: int, streams: Words, seed: int) -> tuple[Words, Words]:
    """The first two of the four words that Philox4x32-10 (Salmon et al. 2011, "Parallel random
    numbers: as easy as 1, 2, 3") makes of each of the counters (call, 0, stream, 0).

    Args:
        call: from 0, as are streams; of 32 bits.
        streams: [N].
        seed: of 64 bits, the key.
    """
    low, high = (
        [np.uint64((word + step * turn) & _WORD) for turn in range(ROUNDS)]
        for word, step in zip((seed & _WORD, seed >> 32 & _WORD), _KEY_STEPS, strict=True)
    )
    # The first round, and half of the second, are alike for all streams or for all seeds.
    third = streams * _THIRD
    first = third >> _HALF
    first ^= low[0]
    first *= _FIRST
    own = call * int(_FIRST)
    alike = (own >> 32 ^ int(high[0])) * int(_THIRD)
    a, b = third & _LOW, np.full_like(third, alike & _WORD)
    a ^= np.uint64(alike >> 32) ^ low[1]
    c, d = first >> _HALF, first & _LOW
    c ^= np.uint64(own & _WORD) ^ high[1]
    # In place, which halves the time: an SDE sampler draws two dozen times a step.
    for turn in range(2, ROUNDS - 1):
        np.multiply(a, _FIRST, out=first)
        np.multiply(c, _THIRD, out=third)
        np.right_shift(third, _HALF, out=a)
        a ^= b
        a ^= low[turn]
        np.right_shift(first, _HALF, out=c)
        c ^= d
        c ^= high[turn]
        np.bitwise_and(third, _LOW, out=b)
        np.bitwise_and(first, _LOW, out=d)
    # Nobody asks for the other two words.
    np.multiply(c, _THIRD, out=third)
    np.right_shift(third, _HALF, out=a)
    a ^= b
    a ^= low[-1]
    return a, np.bitwise_and(third, _LOW, out=b)


def normal(seed: int, call: int, count: int) -> Tensor:
    """``count`` standard normal numbers, as ``torch.randn`` on a card draws them. Float32.

    Number i comes from stream i, whose ``call``-th block of four words this is; of the pair that
    Box and Muller's method makes of two words, it is the first. That holds for as many numbers
    as a card has threads, at least 100 000 or so; beyond, cards differ from each other.
    """
    made = torch.empty(count)
    for first in range(0, count, BLOCK):
        block = made[first : first + BLOCK]
        streams = np.arange(first, first + len(block), dtype=np.uint64)
        block.copy_(_box_muller(*philox(call, streams, seed)))
    return made


def _box_muller(*words: Words) -> Tensor:
    """In double precision. torch's sines and logarithms take a third of numpy's time."""
    u, v = (torch.from_numpy(row.view(np.int64)).double() for row in words)
    radius = u.mul_(_STEP).add_(_STEP / 2).log_().mul_(-2.0).sqrt_()
    return radius.mul_(v.mul_(_ANGLE_STEP).add_(_ANGLE_STEP / 2).sin_())

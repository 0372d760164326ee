"""A Brownian path that is the same wherever and in whatever order it is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import sqrt
from operator import add
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from farm.worker.samplers.halving import Halving
from farm.worker.samplers.philox import Words

Numbers: TypeAlias = NDArray[np.float32]
"""For small latents numpy takes half of torch's time, and for large ones as much."""
Normal: TypeAlias = Callable[[int], Numbers]
"""Standard normal noise from a seed, good until the next call."""

POOL = 24

# The constants of numpy's SeedSequence. Filling and mixing a pool has used the first of them POOL
# times POOL, and the first word of a key POOL times more.
_WORD, _HALF = np.uint64(0xFFFFFFFF), np.uint64(16)
_START, _MULTIPLY = 0x43B0D7E5, 0x931E8875
_MIX_LEFT, _MIX_RIGHT = np.uint64(0xCA01F9DD), np.uint64(0x4973F715)
_STATE, _STATE_AFTER = np.uint64(0x8B51F9DD), np.uint64(0x8B51F9DD * 0x58F38DED & 0xFFFFFFFF)
_SPAWNING = tuple(
    tuple(np.uint64(_START * pow(_MULTIPLY, used, 2**32) & 0xFFFFFFFF) for used in (turn, turn + 1))
    for turn in (POOL * POOL, POOL * POOL + POOL)
)
"""What each word of a key is mixed with, and then multiplied with."""


class BrownianPath:
    """The values of torchsde's ``BrownianTree``, which k-diffusion's SDE samplers use.

    This is that package's one construction of a dozen, without its dependency on scipy, and with
    noise from any source, where webui must replace a function of it while it runs. Each half's
    noise has a seed of its own, made of the path's seed and its place. Every piece is made once,
    and kept as long as a later way needs it.

    Args:
        halving: the times, and those that will be asked for.
        seed: of the path, 0 or more.
        noise: where it comes from.
    """

    def __init__(self, halving: Halving, *, seed: int, noise: Normal) -> None:
        self._noise = noise
        self._ways = halving.ways
        self._next = 0
        sequence = np.random.SeedSequence(entropy=seed, pool_size=POOL)
        pool = int(sequence.pool[0])
        self._seeds = spawned(pool, halving.places, halving.depths)
        whole = noise(int(sequence.generate_state(1)[0])) * sqrt(halving.length)
        self._shape = whole.shape
        self._pieces: dict[int, Numbers] = {0: whole}

    def increment(self) -> Numbers:
        """How far the path leads between the next two of the halving's times; not to be changed in
        place."""
        way, pieces = self._ways[self._next], self._pieces
        seeds = self._seeds[way.first : way.first + len(way.splits)].tolist()
        # Most of what a step of an SDE sampler costs the host is done here.
        for seed, (piece, left, right, deviation, before, share) in zip(
            seeds, way.splits, strict=True
        ):
            half = self._noise(seed) * deviation
            mean = pieces[piece] * before
            mean *= share
            half += mean
            pieces[left], pieces[right] = half, pieces[piece] - half
        parts = (pieces[part] for part in way.parts)
        led = reduce(add, parts) if way.parts else np.zeros(self._shape, dtype=np.float32)
        for piece in way.done:
            del pieces[piece]
        self._next += 1
        return led


def spawned(pool: int, *key: Words) -> Words:
    """For each spawn key the first word of the ``numpy.random.SeedSequence`` that has it.

    Of the parent's pool (O'Neill 2015, "Developing a seed_seq alternative") only the first word
    plays a part in it, so that a few multiplications take the place of six hundred.

    Args:
        key: its two words.
    """
    mixed: Words = np.full(key[0].shape, pool, dtype=np.uint64)
    for word, (before, after) in zip(key, _SPAWNING, strict=True):
        hashed = (word ^ before) * after & _WORD
        hashed ^= hashed >> _HALF
        mixed = (_MIX_LEFT * mixed - _MIX_RIGHT * hashed) & _WORD
        mixed ^= mixed >> _HALF
    state = (mixed ^ _STATE) * _STATE_AFTER & _WORD
    return state ^ state >> _HALF

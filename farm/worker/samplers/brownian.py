"""A Brownian path that is the same wherever and in whatever order it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from math import sqrt
from operator import add
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Normal: TypeAlias = Callable[[int], Tensor]
"""Standard normal noise from a seed. Float32, on the CPU."""
Numbers: TypeAlias = NDArray[np.float32]
"""For small latents numpy takes half of torch's time, and for large ones as much."""

POOL = 24
DIGITS = 6

# The constants of numpy's SeedSequence. Filling and mixing a pool has used the first of them POOL
# times POOL, and the first word of a key POOL times more.
_WORD = 0xFFFFFFFF
_START, _MULTIPLY = 0x43B0D7E5, 0x931E8875
_MIX_LEFT, _MIX_RIGHT = 0xCA01F9DD, 0x4973F715
_STATE, _MULTIPLY_STATE = 0x8B51F9DD, 0x58F38DED
_SPAWNING = tuple(_START * pow(_MULTIPLY, POOL * (POOL + word), 2**32) & _WORD for word in range(2))


@dataclass(eq=False, slots=True)
class _Piece:
    """The path between two times: where in the tree of halves, how far it leads, and its halves
    if they are known."""

    depth: int
    place: int
    start: float
    end: float
    increment: Numbers
    halves: tuple[_Piece, _Piece] | None = None


class BrownianPath:
    """The values of torchsde's ``BrownianTree``, which k-diffusion's SDE samplers use.

    Time is halved until a piece begins or ends where asked, to a millionth (the virtual Brownian
    tree of Li et al. 2020, arXiv 2001.01328). Each half's noise has a seed of its own, drawn
    from the path's seed and its place, so nothing must be remembered.

    This is that package's one construction of a dozen, without its dependency on scipy, and with
    noise from any source, where webui must replace a function of it while it runs.

    Args:
        start, end: the times between which the path is known, ``start < end``.
        seed: of the path, 0 or more.
        noise: where it comes from.
    """

    def __init__(self, start: float, end: float, *, seed: int, noise: Normal) -> None:
        self._noise = noise
        sequence = np.random.SeedSequence(entropy=seed, pool_size=POOL)
        self._pool = int(sequence.pool[0])
        whole = noise(int(sequence.generate_state(1)[0])).numpy()
        whole *= sqrt(end - start)
        self._whole = _Piece(0, 0, _rounded(start), _rounded(end), whole)

    def increment(self, start: float, end: float) -> Tensor:
        """How far the path leads between two times, ``start < end``, inside its own."""
        start = max(_rounded(start), self._whole.start)
        end = min(_rounded(end), self._whole.end)
        if start >= end:
            return torch.from_numpy(self._whole.increment * 0)
        parts = (piece.increment for piece in self._pieces(start, end))
        return torch.from_numpy(reduce(add, parts))

    def _pieces(self, start: float, end: float) -> Iterator[_Piece]:
        """The fewest pieces that cover this time, in order.

        What lies around its ends stays known for the next time, which mostly begins or ends
        there too; all else is forgotten, and made again if it is asked for.
        """
        ahead = [self._whole]
        while ahead:
            piece = ahead.pop()
            if start <= piece.start and piece.end <= end:
                piece.halves = None
                yield piece
                continue
            left, right = piece.halves = piece.halves or self._split(piece)
            for half, wanted in ((right, end > left.end), (left, start < left.end)):
                if wanted:
                    ahead.append(half)
                else:
                    half.halves = None

    def _split(self, piece: _Piece) -> tuple[_Piece, _Piece]:
        middle = _rounded(0.5 * (piece.end + piece.start))
        share = 1 / (piece.end - piece.start)
        before, after = middle - piece.start, piece.end - middle
        seed = spawned(self._pool, (piece.place, piece.depth))
        # In place: most of what a step of an SDE sampler costs the host is done here.
        left = self._noise(seed).numpy()
        left *= sqrt(before * after * share)
        mean = piece.increment * before
        mean *= share
        left += mean
        depth, place = piece.depth + 1, 2 * piece.place
        return (
            _Piece(depth, place, piece.start, middle, left),
            _Piece(depth, place + 1, middle, piece.end, piece.increment - left),
        )


def spawned(pool: int, key: tuple[int, int]) -> int:
    """The first word of the ``numpy.random.SeedSequence`` with this spawn key.

    Of the parent's pool (O'Neill 2015, "Developing a seed_seq alternative") only the first word
    plays a part in it, so that a few multiplications take the place of six hundred.
    """
    for word, constant in zip(key, _SPAWNING, strict=True):
        mixed = (word ^ constant) * (constant * _MULTIPLY) & _WORD
        pool = (_MIX_LEFT * pool - _MIX_RIGHT * (mixed ^ mixed >> 16)) & _WORD
        pool ^= pool >> 16
    state = (pool ^ _STATE) * (_STATE * _MULTIPLY_STATE) & _WORD
    return state ^ state >> 16


def _rounded(time: float) -> float:
    return round(time, DIGITS)

"""A Brownian path that is the same wherever and in whatever order it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from math import sqrt
from operator import add
from typing import NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

Normal: TypeAlias = Callable[[int], Tensor]
"""Standard normal noise from a seed."""

POOL = 24
DIGITS = 6
CACHED = 64


class _Piece(NamedTuple):
    """The path between two times: where in the tree of halves, and how far it leads."""

    depth: int
    place: int
    start: float
    end: float
    increment: Tensor


class BrownianPath:
    """The values of torchsde's ``BrownianTree``, which k-diffusion's SDE samplers use.

    Time is halved until a piece begins or ends where asked, to a millionth (the virtual Brownian
    tree of Li et al. 2020, arXiv 2001.01328). Each half's noise has a seed of its own, drawn
    from the path's seed and its place, so nothing needs to be remembered.

    This is that package's one construction of a dozen, without its dependency on scipy, and with
    noise from any source, where webui must replace a function of it while it runs.

    Args:
        start, end: the times between which the path is known, ``start < end``.
        seed: of the path, 0 or more.
        noise: where it comes from.
    """

    def __init__(self, start: float, end: float, *, seed: int, noise: Normal) -> None:
        self._seed = seed
        self._noise = noise
        first = int(np.random.SeedSequence(entropy=seed, pool_size=POOL).generate_state(3)[0])
        whole = noise(first) * sqrt(end - start)
        self._whole = _Piece(0, 0, _rounded(start), _rounded(end), whole)
        self._halves = lru_cache(CACHED)(self._split)

    def increment(self, start: float, end: float) -> Tensor:
        """How far the path leads between two times, ``start < end``, inside its own."""
        start = max(_rounded(start), self._whole.start)
        end = min(_rounded(end), self._whole.end)
        if start >= end:
            return self._whole.increment * 0
        return reduce(add, (piece.increment for piece in self._pieces(self._whole, start, end)))

    def _pieces(self, piece: _Piece, start: float, end: float) -> Iterator[_Piece]:
        """The fewest pieces that cover this time, in order."""
        if (start, end) == (piece.start, piece.end):
            yield piece
            return
        left, right = self._halves(piece.depth, piece.place)
        if start < left.end:
            yield from self._pieces(left, start, min(end, left.end))
        if end > left.end:
            yield from self._pieces(right, max(start, left.end), end)

    def _split(self, depth: int, place: int) -> tuple[_Piece, _Piece]:
        piece = self._piece(depth, place)
        middle = 0.5 * (piece.end + piece.start)
        rounded = _rounded(middle)
        state = np.random.SeedSequence(
            entropy=self._seed, spawn_key=(place, depth), pool_size=POOL
        ).generate_state(4)
        share = 1 / (piece.end - piece.start)
        before, after = rounded - piece.start, piece.end - rounded
        bend = sqrt(before * after * share)
        left = before * piece.increment * share + bend * self._noise(int(state[0]))
        return (
            _Piece(depth + 1, 2 * place, piece.start, rounded, left),
            _Piece(depth + 1, 2 * place + 1, rounded, piece.end, piece.increment - left),
        )

    def _piece(self, depth: int, place: int) -> _Piece:
        if depth == 0:
            return self._whole
        return self._halves(depth - 1, place // 2)[place % 2]


def _rounded(time: float) -> float:
    return round(time, DIGITS)

"""Where a Brownian path is halved, worked out once for all images that take the same steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DIGITS = 6


class Split(NamedTuple):
    """A piece of the path becomes two.

    Attributes:
        piece, left, right: numbers of pieces; that of the whole path is 0.
        deviation: what standard normal noise is multiplied with.
        before: time in the left half.
        share: one over the time in the piece.
    """

    piece: int
    left: int
    right: int
    deviation: float
    before: float
    share: float


@dataclass(frozen=True, slots=True)
class Way:
    """What it takes to know how far the path leads between two times.

    Attributes:
        first: how many splits the ways before this one made.
        splits: those to make now, each before its halves are split.
        parts: the pieces that lie between the times, in order; none where no time does.
        done: pieces that no later way needs.
    """

    first: int
    splits: Sequence[Split]
    parts: Sequence[int]
    done: Sequence[int]


class Halving:
    """Time is halved until a piece begins or ends where asked, to a millionth (the virtual Brownian
    tree of Li et al. 2020, arXiv 2001.01328), as torchsde's ``BrownianTree`` does it.

    Args:
        start, end: the times between which the path is known, ``start < end``.
        asked: for how far it leads between which two times, ``start < end``, in this order.

    Attributes:
        length: of all that time.
        ways: one for each that is asked for.
        places, depths: [splits], where in the tree of halves each is; they make its seed.
    """

    def __init__(self, start: float, end: float, asked: Sequence[tuple[float, float]]) -> None:
        self.length = end - start
        tree = _Tree(_rounded(start), _rounded(end))
        found = [tree.way(_rounded(start), _rounded(end)) for start, end in asked]
        last = {
            piece: number
            for number, (_, splits, parts) in enumerate(found)
            for piece in (*parts, *(each for split in splits for each in split[:3]))
        }
        done: list[list[int]] = [[] for _ in found]
        for piece, number in last.items():
            done[number].append(piece)
        self.ways = [Way(*way, gone) for way, gone in zip(found, done, strict=True)]
        self.places: NDArray[np.uint64] = np.array(tree.places, dtype=np.uint64)
        self.depths: NDArray[np.uint64] = np.array(tree.depths, dtype=np.uint64)


@dataclass(eq=False, slots=True)
class _Piece:
    """Of time: where in the tree of halves, from when to when, and its halves if it has any."""

    number: int
    depth: int
    place: int
    start: float
    end: float
    halves: tuple[_Piece, _Piece] | None = None


class _Tree:
    """The pieces that there are so far.

    Attributes:
        places, depths: of those that are split.
    """

    def __init__(self, start: float, end: float) -> None:
        self.places: list[int] = []
        self.depths: list[int] = []
        self._splits: list[Split] = []
        self._whole = _Piece(0, 0, 0, start, end)

    def way(self, start: float, end: float) -> tuple[int, list[Split], list[int]]:
        """As the first attributes of a :class:`Way`."""
        first, whole = len(self._splits), self._whole
        start, end = max(start, whole.start), min(end, whole.end)
        parts = [piece.number for piece in self._between(start, end)] if start < end else []
        return first, self._splits[first:], parts

    def _between(self, start: float, end: float) -> Iterator[_Piece]:
        """The fewest pieces that cover this time, in order."""
        ahead = [self._whole]
        while ahead:
            piece = ahead.pop()
            if start <= piece.start and piece.end <= end:
                yield piece
                continue
            left, right = piece.halves = piece.halves or self._split(piece)
            if end > left.end:
                ahead.append(right)
            if start < left.end:
                ahead.append(left)

    def _split(self, piece: _Piece) -> tuple[_Piece, _Piece]:
        middle = _rounded(0.5 * (piece.end + piece.start))
        share = 1 / (piece.end - piece.start)
        before, after = middle - piece.start, piece.end - middle
        number = 2 * len(self._splits) + 1
        self._splits.append(
            Split(piece.number, number, number + 1, sqrt(before * after * share), before, share)
        )
        self.places.append(piece.place)
        self.depths.append(piece.depth)
        depth, place = piece.depth + 1, 2 * piece.place
        return (
            _Piece(number, depth, place, piece.start, middle),
            _Piece(number + 1, depth, place + 1, middle, piece.end),
        )


def _rounded(time: float) -> float:
    return round(time, DIGITS)

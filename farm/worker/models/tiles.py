"""A large picture made in tiles that overlap and fade into each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import product
from math import ceil

import torch
from torch import Tensor


class Mosaic:
    """An enlarged picture, put together tile by tile.

    Where tiles overlap each counts by how far inside of it a pixel lies, so that nothing jumps;
    the shares of all tiles are 1 together, so that one tile alone stays what it is. What no tile
    can add to any more is rounded at once: of sums there are no more rows than a tile has.

    Args:
        width, height: of the picture before, in pixels.
        scale: how many times as large it becomes.
        tile, overlap: sides in pixels of the picture before.

    Attributes:
        picture: [height, width, 3] uint8, once all tiles are put.
    """

    def __init__(self, width: int, height: int, *, scale: int, tile: int, overlap: int) -> None:
        self._scale = scale
        self._spans = [_spans(side, tile, overlap) for side in (height, width)]
        self._shares = [_shares(spans, scale) for spans in self._spans]
        self._top = 0
        self._sums = torch.zeros(3, min(tile, height) * scale, width * scale)
        self.picture = torch.empty(height * scale, width * scale, 3, dtype=torch.uint8)
        self._waiting = deque(product(*(range(len(spans)) for spans in self._spans)))

    @property
    def next(self) -> tuple[slice, slice] | None:
        """Rows and columns of the picture before that are to be enlarged next; None when all
        are."""
        if not self._waiting:
            return None
        rows, columns = self._edges()
        return slice(*rows), slice(*columns)

    def put(self, tile: Tensor) -> None:
        """The next one, enlarged: [3, height, width] from 0 to 1, on any device. Where it fails for
        want of memory it may be put again."""
        (first, last), columns = ([self._scale * edge for edge in span] for span in self._edges())
        down, across = (
            all[place] for all, place in zip(self._shares, self._waiting[0], strict=True)
        )
        whole = tile.to("cpu", torch.float32) * down[:, None] * across
        self._sums[:, first - self._top : last - self._top, slice(*columns)] += whole
        row, _ = self._waiting.popleft()
        if not self._waiting:
            self._round(last)
        elif self._waiting[0][0] > row:
            self._round(self._edges()[0][0] * self._scale)

    def _round(self, end: int) -> None:
        """All rows up to ``end`` of the enlarged picture are whole."""
        count = end - self._top
        whole = self._sums[:, :count].mul_(255).round_().clamp_(0, 255)
        self.picture[self._top : end] = whole.permute(1, 2, 0)
        left = self._sums.shape[1] - count
        # Piece by piece: to copy what overlaps takes memory, without which no tile is put again.
        for first in range(0, left, count):
            last = min(first + count, left)
            self._sums[:, first:last] = self._sums[:, first + count : last + count]
        self._sums[:, left:] = 0
        self._top = end

    def _edges(self) -> list[tuple[int, int]]:
        return [all[place] for all, place in zip(self._spans, self._waiting[0], strict=True)]


def _spans(side: int, tile: int, overlap: int) -> Sequence[tuple[int, int]]:
    """First and last but one of the tiles along a side, spread evenly."""
    if side <= tile:
        return [(0, side)]
    count = ceil((side - overlap) / (tile - overlap))
    firsts = [round(number * (side - tile) / (count - 1)) for number in range(count)]
    return [(first, first + tile) for first in firsts]


def _shares(spans: Sequence[tuple[int, int]], scale: int) -> Sequence[Tensor]:
    """Of each tile along a side what it counts, pixel by pixel of the enlarged picture."""
    places = torch.arange(spans[-1][1] * scale, dtype=torch.float64) + 0.5
    depths = torch.stack([_depth(places, span, scale) for span in spans])
    # A tile at the picture's own edge does not fade there.
    shares = (depths / depths.sum(0)).float()
    return [
        share[first * scale : last * scale]
        for share, (first, last) in zip(shares, spans, strict=True)
    ]


def _depth(places: Tensor, span: tuple[int, int], scale: int) -> Tensor:
    """How far inside of a tile places lie; 0 outside."""
    first, last = (scale * edge for edge in span)
    return torch.minimum(places - first, last - places).clamp_min(0)

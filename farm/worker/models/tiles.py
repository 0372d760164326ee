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
    the shares of all tiles are 1 together, so that one tile alone stays what it is.

    Args:
        width, height: of the picture before, in pixels.
        scale: how many times as large it becomes.
        tile, overlap: sides in pixels of the picture before.
    """

    def __init__(self, width: int, height: int, *, scale: int, tile: int, overlap: int) -> None:
        self._scale = scale
        self._spans = [_spans(side, tile, overlap) for side in (height, width)]
        self._shares = [_shares(spans, scale) for spans in self._spans]
        self._sum = torch.zeros(3, height * scale, width * scale)
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
        """The next one, enlarged: [3, height, width] from 0 to 1, on any device."""
        rows, columns = (slice(*(self._scale * edge for edge in span)) for span in self._edges())
        shares = zip(self._shares, self._waiting.popleft(), strict=True)
        down, across = (all[place] for all, place in shares)
        self._sum[:, rows, columns] += tile.to("cpu", torch.float32) * down[:, None] * across

    @property
    def picture(self) -> Tensor:
        """[height, width, 3] uint8, rounded, of all tiles that were put."""
        whole: Tensor = self._sum.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        return whole.permute(1, 2, 0).contiguous()

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

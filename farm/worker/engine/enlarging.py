"""Pictures that models enlarge, tile by tile, by the device or by the host."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic

import torch
from torch import Tensor

from farm.worker.memory.exhaustion import on_host
from farm.worker.models.tiles import Mosaic
from farm.worker.models.upscaler import PlacedUpscaler, Upscaler

OVERLAP = 8
"""Pixels of two tiles side by side, as in webui."""
CPU = torch.device("cpu")

_host = ThreadPoolExecutor(1, thread_name_prefix="enlarge")
"""One tile at a time has all the cores that torch takes."""


@dataclass
class Enlarging:
    """A picture under way, what enlarges it, and in tiles of how many pixels of a side.

    Attributes:
        model: None while others need its place on the device.
        coming: the tile that the host is at work on, and the seconds it took; None where the
            device does the work.
        alone: whether others have left for its sake.
    """

    upscaler: Upscaler
    dtype: torch.dtype
    mosaic: Mosaic
    tile: int
    model: PlacedUpscaler | None = None
    coming: Future[tuple[Tensor, float]] | None = None
    alone: bool = False

    def begin_tile(self, picture: Tensor) -> None:
        """Have the host make the next tile while the device goes on with other work.

        Args:
            picture: [h, w, 3] uint8, all of it.
        """
        self.model = self.model or self.upscaler.placed(torch.float32, CPU)
        self.coming = _host.submit(partial(_made, self.model, picture[self.mosaic.next]))

    def put(self, tile: Tensor) -> None:
        """The next tile; where the host has no memory for that it may be put again.

        Raises:
            HostExhausted: it has none.
        """
        with on_host("a larger picture"):
            self.mosaic.put(tile)


def enlarging(upscaler: Upscaler, picture: Tensor, *, dtype: torch.dtype, tile: int) -> Enlarging:
    """A picture, [h, w, 3] uint8, of which nothing is enlarged yet; raises as :meth:`put` does."""
    height, width = picture.shape[:2]
    with on_host("a larger picture"):
        mosaic = Mosaic(width, height, scale=upscaler.scale, tile=tile, overlap=OVERLAP)
    return Enlarging(upscaler, dtype, mosaic, tile)


def _made(model: PlacedUpscaler, picture: Tensor) -> tuple[Tensor, float]:
    began = monotonic()
    with torch.no_grad(), on_host("a tile of a larger picture"):
        tile = model(picture)
    return tile, monotonic() - began

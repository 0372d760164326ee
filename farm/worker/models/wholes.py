"""Up to which size pictures pass through a VAE as a whole."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from farm.worker.memory.exhaustion import out_of_memory

T = TypeVar("T")


class Wholes:
    """Most pixels of a picture that is not passed in tiles, in one direction, by precision.

    Args:
        planned: that, before memory ever ran out.
        tile: pixels of a tile's side; what is no larger is whole in any case.
    """

    def __init__(self, planned: Callable[[torch.dtype], int], tile: int) -> None:
        self._planned = planned
        self._tile = tile
        self._short: dict[torch.dtype, int] = {}

    def __getitem__(self, dtype: torch.dtype) -> int:
        return self._short[dtype] if dtype in self._short else self._planned(dtype)

    def __setitem__(self, dtype: torch.dtype, pixels: int) -> None:
        self._short[dtype] = pixels

    def attempt(
        self, work: Callable[[], T], dtype: torch.dtype, pixels: int, *, whole: bool = False
    ) -> T:
        """What ``work`` makes, which asks here how. Where memory runs out it is tried once more in
        tiles, as are all of its size and above in that precision from then on.

        Args:
            whole: raise instead.
        """
        try:
            return work()
        except Exception as error:
            large = self._tile**2 < pixels <= self[dtype]
            if whole or not large or not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
        self[dtype] = pixels - 1
        return work()

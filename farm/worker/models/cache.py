"""The checkpoints that are resident on one device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.catalogue import CheckpointFile
from farm.worker.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class CacheStatistics:
    """Counts since the cache was made; ``load_seconds`` is the sum over all loads."""

    hits: int = 0
    loads: int = 0
    evictions: int = 0
    load_seconds: float = 0.0


class ModelCache:
    """Loads checkpoints when asked for and keeps the last used within the profile's budget.

    Safe with threads: one load at a time, and those who ask for the same checkpoint share it.
    """

    def __init__(
        self, files: Sequence[CheckpointFile], profile: MemoryProfile, device: torch.device
    ) -> None:
        self.files = files
        self.profile = profile
        self.device = device

    @property
    def resident(self) -> tuple[str, ...]:
        """Names in memory, the least recently used first."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Memory of all resident weights."""
        raise NotImplementedError

    @property
    def statistics(self) -> CacheStatistics:
        raise NotImplementedError

    def get(self, name: str) -> Checkpoint:
        """The checkpoint called ``name``, loaded if need be.

        Raises:
            CheckpointError: no such checkpoint (its near names are listed), or it is unusable.
            DoesNotFit: it is larger than the budget beside those in use.
        """
        raise NotImplementedError

    def pin(self, name: str) -> Checkpoint:
        """:meth:`get`, and keep it resident until as many :meth:`unpin`."""
        raise NotImplementedError

    def unpin(self, name: str) -> None:
        """Undo one :meth:`pin`."""
        raise NotImplementedError

    @contextmanager
    def use(self, name: str) -> Iterator[Checkpoint]:
        """``with cache.use(name) as checkpoint:`` pins it for the block."""
        raise NotImplementedError
        yield

"""The checkpoints that are resident on one device."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from farm.errors import DoesNotFit
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.kinds import CHECKPOINT
from farm.worker.models.library import find
from farm.worker.models.loader import prepare


@dataclass(frozen=True)
class CacheStatistics:
    """Counts since the cache was made; ``load_seconds`` is the sum over all loads."""

    hits: int
    loads: int
    evictions: int
    load_seconds: float


class ModelCache:
    """Loads checkpoints when asked for and keeps the last used within the profile's budget.

    Safe with threads: one load at a time; those who ask for the same checkpoint share it, and
    those who ask for a resident one never wait for a load.
    """

    def __init__(
        self, files: Iterable[AssetFile], profile: MemoryProfile, device: torch.device
    ) -> None:
        self._files = files
        self._profile = profile
        self._device = device
        self._resident: OrderedDict[str, Checkpoint] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._hits = self._loads = self._evictions = 0
        self._load_seconds = 0.0
        self._loading = threading.Lock()
        self._state = threading.RLock()

    @property
    def resident(self) -> tuple[str, ...]:
        """Names in memory, the least recently used first."""
        with self._state:
            return tuple(self._resident)

    @property
    def bytes(self) -> int:
        """Memory of all resident weights."""
        with self._state:
            return sum(checkpoint.bytes for checkpoint in self._resident.values())

    @property
    def statistics(self) -> CacheStatistics:
        """The counts so far."""
        with self._state:
            return CacheStatistics(self._hits, self._loads, self._evictions, self._load_seconds)

    def get(self, name: str) -> Checkpoint:
        """The checkpoint called ``name``, loaded if need be.

        Raises:
            CheckpointError: no such checkpoint (its near names are listed), or it is unusable.
            DoesNotFit: it is larger than the budget leaves beside those in use.
        """
        return self._obtain(name, pins=0)

    def pin(self, name: str) -> Checkpoint:
        """:meth:`get`, and keep it resident until as many calls of :meth:`unpin`."""
        return self._obtain(name, pins=1)

    def unpin(self, name: str) -> None:
        """Undo one :meth:`pin`."""
        with self._state:
            if self._pins[name] < 1:
                raise ValueError(f"{name!r} is not pinned")
            self._pins[name] -= 1

    @contextmanager
    def use(self, name: str) -> Iterator[Checkpoint]:
        """``with cache.use(name) as checkpoint:`` pins it for the block."""
        checkpoint = self.pin(name)
        try:
            yield checkpoint
        finally:
            self.unpin(name)

    def _obtain(self, name: str, *, pins: int) -> Checkpoint:
        if held := self._hit(name, pins):
            return held
        with self._loading:
            if held := self._hit(name, pins):
                return held
            prepared = prepare(
                find(tuple(self._files), CHECKPOINT, name), self._profile, self._device
            )
            self._make_room(name, prepared.bytes)
            checkpoint = prepared.load()
            with self._state:
                self._resident[name] = checkpoint
                self._pins[name] += pins
                self._loads += 1
                self._load_seconds += checkpoint.load_seconds
        return checkpoint

    def _hit(self, name: str, pins: int) -> Checkpoint | None:
        with self._state:
            checkpoint = self._resident.get(name)
            if checkpoint is not None:
                self._resident.move_to_end(name)
                self._pins[name] += pins
                self._hits += 1
            return checkpoint

    def _make_room(self, name: str, needed: int) -> None:
        """Give up the least recently used until ``needed`` bytes fit; nothing if they never do."""
        with self._state:
            held = {other: self._resident[other].bytes for other in self._resident}
            pinned = [other for other in held if self._pins[other]]
            budget = self._profile.weights_bytes - sum(held[other] for other in pinned)
            if needed > budget:
                raise self._too_large(name, needed, pinned)
            for other in [other for other in held if other not in pinned]:
                if self.bytes + needed <= self._profile.weights_bytes:
                    break
                del self._resident[other]
                self._evictions += 1
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, name: str, needed: int, pinned: Sequence[str]) -> DoesNotFit:
        beside = f" beside {', '.join(pinned)}, in use" if pinned else ""
        return DoesNotFit(
            f"{name} needs {needed / GIB:.1f} GiB; the {self._profile.name} profile has "
            f"{self._profile.weights_bytes / GIB:.1f} GiB for checkpoints{beside}.",
            field="checkpoint",
            value=name,
            remedy="Use a smaller checkpoint or a card with more memory.",
        )

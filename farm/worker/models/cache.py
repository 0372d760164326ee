"""The checkpoints held by one worker: on its device, and behind that in host memory."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from farm.errors import CheckpointError, Conflict, DoesNotFit
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.kinds import CHECKPOINT, VAE
from farm.worker.models.library import find
from farm.worker.models.loader import Prepared, prepare
from farm.worker.models.vae import external_vae

SPARE = GIB
"""Device memory that a load leaves for what is neither weights nor activations."""


@dataclass(frozen=True)
class CacheStatistics:
    """Counts since the cache was made.

    Attributes:
        hits: uses of a checkpoint that was on the device.
        disk_loads, disk_seconds: reads from disk, and what they took in all.
        host_loads, host_seconds: returns from host memory.
        evictions: checkpoints that left the device.
    """

    hits: int = 0
    disk_loads: int = 0
    disk_seconds: float = 0.0
    host_loads: int = 0
    host_seconds: float = 0.0
    evictions: int = 0


@dataclass(frozen=True)
class _Held:
    """A checkpoint in memory, and the file it was read from."""

    checkpoint: Checkpoint
    file: AssetFile


class ModelCache:
    """Loads checkpoints when asked for, and keeps the last used ones within two budgets.

    What leaves the device stays in host memory while there is room, and returns from there.
    Parts that checkpoints have in common are held, and counted, once.

    Safe with threads: one load at a time; those who ask for the same checkpoint share it, and
    those who ask for a resident one never wait for a load.

    Args:
        files: every known asset; looked through anew for each load, so it may be a
            :class:`farm.worker.models.library.Library` that changes.
        profile: its ``weights_bytes`` is the budget of the device.
        host_bytes: budget of host memory for checkpoints that have left the device.
    """

    def __init__(
        self,
        files: Iterable[AssetFile],
        profile: MemoryProfile,
        device: torch.device,
        *,
        host_bytes: int = 0,
    ) -> None:
        self._files = files
        self._profile = profile
        self._device = device
        self._host_bytes = host_bytes
        self._resident: OrderedDict[str, _Held] = OrderedDict()
        self._host: OrderedDict[str, _Held] = OrderedDict()
        self._pins: Counter[str] = Counter()
        self._statistics = CacheStatistics()
        self._loading = threading.Lock()
        self._state = threading.RLock()

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the checkpoints on the device, the least recently used first."""
        with self._state:
            return tuple(self._resident)

    @property
    def in_host(self) -> tuple[str, ...]:
        """Names of the checkpoints in host memory, the first to go first."""
        with self._state:
            return tuple(self._host)

    @property
    def bytes(self) -> int:
        """Device memory of all weights."""
        with self._state:
            return _bytes(self._resident.values())

    @property
    def statistics(self) -> CacheStatistics:
        """The counts so far."""
        return self._statistics

    @property
    def loading(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._loading.locked()

    def get(self, name: str) -> Checkpoint:
        """The checkpoint called ``name``, loaded if need be.

        Raises:
            CheckpointError: no such checkpoint (its near names are listed), or it is unusable.
            DoesNotFit: it is larger than the budget leaves beside those in use.
        """
        return self._obtain(name, pins=0)

    def warm(self, name: str) -> None:
        """:meth:`get` while the device computes: others leave before this one comes."""
        self._obtain(name, pins=0, busy=True)

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

    def evict(self, name: str) -> None:
        """Let go of a checkpoint, in host memory too; one that is not here is not missed.

        Raises:
            Conflict: it is in use.
        """
        with self._loading, self._state:
            if self._pins[name]:
                raise Conflict(
                    f"{name} is in use.",
                    field="checkpoint",
                    value=name,
                    remedy="Cancel the jobs that need it, or wait for them.",
                )
            self._take_off([name], keep=False)
            self._host.pop(name, None)

    def shed(self) -> bool:
        """Have everything leave the device that is not in use, as its memory ran out.

        Returns:
            Whether anything left.
        """
        with self._loading, self._state:
            idle = [name for name in self._resident if not self._pins[name]]
            self._leave(idle)
        return bool(idle)

    def drop_changed(self) -> None:
        """Let go of checkpoints that another good file goes by the name of now, unless in use."""
        good = (file for file in self._files if file.kind == CHECKPOINT and not file.error)
        now = {file.name: file.marks for file in good}
        with self._state:
            held = {**self._host, **self._resident}
        old = [
            name for name in held if now.get(name, held[name].file.marks) != held[name].file.marks
        ]
        for name in old:
            try:
                self.evict(name)
            except Conflict:
                continue

    def _obtain(self, name: str, *, pins: int, busy: bool = False) -> Checkpoint:
        if held := self._hit(name, pins):
            return held
        with self._loading:
            if held := self._hit(name, pins):
                return held
            loaded = self._return(name) or self._read(name, busy=busy)
            with self._state:
                self._resident[name] = loaded
                self._pins[name] += pins
        return loaded.checkpoint

    def _hit(self, name: str, pins: int) -> Checkpoint | None:
        with self._state:
            held = self._resident.get(name)
            if held is None:
                return None
            self._resident.move_to_end(name)
            self._pins[name] += pins
            self._count(hits=1)
            return held.checkpoint

    def _return(self, name: str) -> _Held | None:
        """From host memory."""
        began = time.perf_counter()
        held = self._host.get(name)
        if held is None:
            return None
        unwanted = self._unwanted(name, held.checkpoint.bytes)
        with self._state:
            del self._host[name]  # first, lest those that leave push it out
        self._leave(unwanted)
        held.checkpoint.to_device()
        self._count(host_loads=1, host_seconds=time.perf_counter() - began)
        return held

    def _read(self, name: str, *, busy: bool) -> _Held:
        """From disk. While the device computes nothing there is room for others to stay until
        all is read, so they survive a file that breaks in the middle."""
        files = tuple(self._files)
        file = find(files, CHECKPOINT, name)
        vae = external_vae(file.path, [one.path for one in files if one.kind == VAE])
        prepared = prepare(file, self._profile, self._device, vae=vae)
        unwanted = self._unwanted(name, prepared.bytes)
        room = self._profile.memory_bytes - SPARE - self.bytes
        both = not busy and prepared.bytes <= room
        if not both:
            self._leave(unwanted)
        checkpoint = self._load(prepared, () if both else unwanted)
        if both:
            self._leave(unwanted)
        self._count(disk_loads=1, disk_seconds=checkpoint.load_seconds)
        return _Held(checkpoint, file)

    def _load(self, prepared: Prepared, gone: Sequence[str]) -> Checkpoint:
        """Read it; if that fails, what had to leave for it comes back if host memory has it."""
        held = [module for one in self._resident.values() for module in one.checkpoint.held]
        try:
            return prepared.load(held)
        except CheckpointError:
            with self._state:
                for name in gone:
                    if kept := self._host.pop(name, None):
                        kept.checkpoint.to_device()
                        self._resident[name] = kept
            raise

    def _unwanted(self, name: str, needed: int) -> list[str]:
        """The least recently used that must leave for ``needed`` bytes; raises if that is not
        enough."""
        with self._state:
            pinned = [other for other in self._resident if self._pins[other]]
            budget = self._profile.weights_bytes
            if needed > budget - _bytes(self._resident[other] for other in pinned):
                raise self._too_large(name, needed, pinned)
            staying = dict(self._resident)
            for other in self._resident:
                if _bytes(staying.values()) + needed <= budget:
                    break
                if other not in pinned:
                    del staying[other]
            return [other for other in self._resident if other not in staying]

    def _leave(self, names: Sequence[str]) -> None:
        with self._state:
            self._take_off(names, keep=True)
        if names and self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _take_off(self, names: Sequence[str], *, keep: bool) -> None:
        """Off the device, into host memory if it is to be kept and there is room."""
        for name in names:
            held = self._resident.pop(name, None)
            if held is None:
                continue
            self._count(evictions=1)
            if keep and held.checkpoint.bytes <= self._host_bytes:
                needed = {part for one in self._resident.values() for part in one.checkpoint.held}
                held.checkpoint.to_host(needed)
                self._host[name] = held
        while _bytes(self._host.values()) > self._host_bytes:
            self._host.popitem(last=False)

    def _count(self, **more: float) -> None:
        with self._state:
            now = {name: getattr(self._statistics, name) + value for name, value in more.items()}
            self._statistics = replace(self._statistics, **now)

    def _too_large(self, name: str, needed: int, pinned: Sequence[str]) -> DoesNotFit:
        beside = f" beside {', '.join(pinned)}, in use" if pinned else ""
        return DoesNotFit(
            f"{name} needs {needed / GIB:.1f} GiB; the {self._profile.name} profile has "
            f"{self._profile.weights_bytes / GIB:.1f} GiB for checkpoints{beside}.",
            field="checkpoint",
            value=name,
            remedy="Use a smaller checkpoint or a card with more memory.",
        )


def _bytes(held: Iterable[_Held]) -> int:
    """Memory of the parts of these checkpoints, each part once."""
    parts: dict[nn.Module, int] = {}
    for one in held:
        parts |= one.checkpoint.held
    return sum(parts.values())

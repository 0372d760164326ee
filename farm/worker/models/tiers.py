"""The ways of checkpoints between disk, host memory and a device."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from farm.errors import CheckpointError
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.device import DeviceTier, Held
from farm.worker.models.host import HostTier, Parcel
from farm.worker.models.kinds import CHECKPOINT, VAE
from farm.worker.models.library import find
from farm.worker.models.loader import Prepared, prepare
from farm.worker.models.preview import needed_decoder
from farm.worker.models.reader import Turn
from farm.worker.models.vae import external_vae

SPARE = GIB
"""Device memory that a load leaves for what is neither weights nor activations."""


@dataclass(frozen=True)
class CacheStatistics:
    """Counts since the cache was made.

    Attributes:
        hits: uses of a checkpoint that was on the device.
        disk_loads, disk_seconds: reads from disk, and what they took in all.
        host_loads, host_seconds: moves from host memory to the device.
        prefetches, prefetch_seconds: reads from disk into host memory, ahead of their use.
        evictions: checkpoints that left the device.
    """

    hits: int = 0
    disk_loads: int = 0
    disk_seconds: float = 0.0
    host_loads: int = 0
    host_seconds: float = 0.0
    prefetches: int = 0
    prefetch_seconds: float = 0.0
    evictions: int = 0


class Tiers:
    """What is on a device and in host memory, and how it gets there.

    Its owner sees to it that one checkpoint at a time comes to the device; beside that one may be
    fetched into host memory, and others be used.

    Args:
        files: every known asset.
        profile: its ``weights_bytes`` is the budget of the device.
        host_bytes: budget of host memory.

    Attributes:
        device, host: the two tiers; whoever looks at them holds ``state``.
        statistics: the counts so far.
    """

    def __init__(
        self,
        files: Iterable[AssetFile],
        profile: MemoryProfile,
        device: torch.device,
        host_bytes: int,
    ) -> None:
        self._files = files
        self._profile = profile
        self._device = device
        self._too_large: set[str] = set()
        self.device = DeviceTier(profile)
        self.host = HostTier(host_bytes)
        self.state = threading.RLock()
        self.statistics = CacheStatistics()

    @property
    def good(self) -> Mapping[str, AssetFile]:
        """The usable checkpoints that there are, by name."""
        return {
            file.name: file for file in self._files if file.kind == CHECKPOINT and not file.error
        }

    def use(self, name: str, pins: int) -> Checkpoint | None:
        """The checkpoint, if it is on the device, and so many pins more on it."""
        with self.state:
            checkpoint = self.device.use(name, pins)
            if checkpoint is not None:
                self._count(hits=1)
            return checkpoint

    def back(self, name: str) -> Held | None:
        """From host memory to the device, if it is there."""
        began = time.perf_counter()
        with self.state:
            parcel = self.host.get(name)
            if parcel is None:
                return None
            unwanted = self.device.unwanted(name, parcel.device_bytes)
            self.host.pop(name)  # first, lest those that leave push it out
        self.leave(unwanted)
        checkpoint = parcel.unpack(self._modules)
        self._count(host_loads=1, host_seconds=time.perf_counter() - began)
        return Held(checkpoint, parcel.file)

    def read(self, name: str, *, busy: bool) -> Held:
        """From disk to the device. While that computes nothing there is room for others to stay
        until all is read, so they survive a file that breaks in the middle.

        Args:
            busy: it computes.
        """
        prepared = self._prepared(name)
        with self.state:
            unwanted = self.device.unwanted(name, prepared.bytes)
            room = self._profile.memory_bytes - SPARE - self.device.bytes
        both = not busy and prepared.bytes <= room
        if not both:
            self.leave(unwanted)
        checkpoint = self._load(name, prepared, () if both else unwanted)
        if both:
            self.leave(unwanted)
        self._count(disk_loads=1, disk_seconds=checkpoint.load_seconds)
        return Held(checkpoint, prepared.file)

    def fetch(self, name: str, sooner: Sequence[str], turn: Turn) -> bool:
        """From disk into host memory, if there is room beside those that are wanted sooner."""
        began = time.perf_counter()
        prepared = self._prepared(name)
        with self.state:
            if not self.host.promise(sum(prepared.weights.values()), keep=sooner):
                return False
        parcel = None
        try:
            parcel = _ahead(prepared, turn)
        finally:
            with self.state:
                now = self.good.get(name, prepared.file)
                self.host.deliver(name, parcel if now.marks == prepared.file.marks else None)
        self._count(prefetches=1, prefetch_seconds=time.perf_counter() - began)
        return True

    def leave(self, names: Sequence[str]) -> None:
        """Off the device, into host memory where there is room."""
        with self.state:
            self.take_off(names, keep=True)
        if names and self._device.type == "cuda":
            torch.cuda.empty_cache()

    def take_off(self, names: Sequence[str], *, keep: bool) -> None:
        """Off the device, into host memory if they are to be kept and there is room."""
        for name in names:
            held = self.device.pop(name)
            if held is None:
                continue
            self._count(evictions=1)
            if keep and sum(held.checkpoint.weights.values()) <= self.host.budget:
                held.checkpoint.to_host(self.device.modules)
                self.host.put(name, _left(held))

    def _prepared(self, name: str) -> Prepared:
        files = tuple(self._files)
        file = find(files, CHECKPOINT, name)
        vae = external_vae(file.path, [one.path for one in files if one.kind == VAE])
        tiny = needed_decoder(files, file) if self._profile.vae == "taesd" else None
        prepared = prepare(file, self._profile, self._device, vae=vae, tiny=tiny)
        return prepared.streamed() if name in self._too_large else prepared

    @property
    def _modules(self) -> list[nn.Module]:
        """All models on the device."""
        with self.state:
            return list(self.device.modules)

    def _load(self, name: str, prepared: Prepared, gone: Sequence[str]) -> Checkpoint:
        """Read it; if that fails, what had to leave for it comes back if host memory has it.

        One that the device has no memory for though nothing else is there is streamed.
        """
        try:
            try:
                return prepared.load(self._modules)
            except Exception as error:
                alone = not self._modules and prepared.may_stream
                if not alone or not out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)
            self._too_large.add(name)
            return prepared.streamed().load()
        except CheckpointError:
            with self.state:
                for other in gone:
                    if kept := self.host.pop(other):
                        self.device.put(other, Held(kept.unpack(self._modules), kept.file))
            raise

    def _count(self, **more: float) -> None:
        with self.state:
            now = {name: getattr(self.statistics, name) + value for name, value in more.items()}
            self.statistics = replace(self.statistics, **now)


def _left(held: Held) -> Parcel:
    """A checkpoint whose weights were moved to host memory."""

    def unpack(_: Sequence[nn.Module]) -> Checkpoint:
        held.checkpoint.to_device()
        return held.checkpoint

    return Parcel(held.file, held.checkpoint.weights, held.checkpoint.bytes, unpack)


def _ahead(prepared: Prepared, turn: Turn) -> Parcel:
    """A checkpoint in host memory that has not been on the device yet."""
    fetched = prepared.fetch(turn)

    def unpack(beside: Sequence[nn.Module]) -> Checkpoint:
        return prepared.load(beside, fetched=fetched)

    parts = {fetched[part]: size for part, size in prepared.weights.items()}
    return Parcel(prepared.file, parts, prepared.bytes, unpack)

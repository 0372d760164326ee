"""The ways of checkpoints between disk, host memory and a device."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from farm.errors import DoesNotFit
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.device import DeviceTier, Held
from farm.worker.models.host import HostTier
from farm.worker.models.kinds import CHECKPOINT, VAE
from farm.worker.models.library import find
from farm.worker.models.loader import Prepared, prepare
from farm.worker.models.parcels import ahead, left
from farm.worker.models.preview import needed_decoder
from farm.worker.models.reader import Turn
from farm.worker.models.statistics import CacheStatistics
from farm.worker.models.vae import external_vae

log = logging.getLogger(__name__)

SPARE = GIB
"""Device memory that a load leaves for what is neither weights nor activations."""


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
        # By their files, as others may go by the same name some day.
        self._too_large: set[tuple[str, object]] = set()
        self._saved: defaultdict[object, Counter[torch.dtype]] = defaultdict(Counter)
        self._vacated = False
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

    def back(self, name: str, *, pins: int, keep: Collection[str], turn: Turn) -> Checkpoint | None:
        """From host memory to the device, if it is there; see :meth:`read`."""
        began = time.perf_counter()
        with self.state:
            parcel = self.host.get(name)
            if parcel is None:
                return None
            unwanted = self.device.unwanted(name, parcel.device_bytes, keep=keep)
            self.host.pop(name)  # first, lest those that leave push it out
            self._take_off(unwanted)
        self._settle()
        held = Held(parcel.unpack(self._modules, turn), parcel.file)
        with self.state:
            self.device.put(name, held, pins=pins)
        self._count(host_loads=1, host_seconds=time.perf_counter() - began)
        return held.checkpoint

    def read(
        self, name: str, *, pins: int, keep: Collection[str], turn: Turn, busy: bool
    ) -> Checkpoint:
        """From disk to the device. While that computes nothing there is room for others to stay
        until all is read, so they survive a file that breaks in the middle.

        Args:
            pins: on it from the start.
            keep: names that must not leave for it.
            turn: entered for each tensor; it may raise to give up.
            busy: the device computes.
        """
        prepared = self._prepared(name)
        with self.state:
            unwanted = self.device.unwanted(name, prepared.bytes, keep=keep)
            taken = self.device.bytes + sum(self.device.recorded.values())
            room = self._profile.memory_bytes - SPARE - taken
            both = not busy and prepared.bytes <= room
            if not both:
                self._take_off(unwanted)
        self._settle()
        checkpoint = self._load(name, prepared, [] if both else unwanted, turn)
        with self.state:
            # Asked anew, as others may have come into use; and it comes before they leave, lest
            # they take along what it has in common with them.
            unwanted = self.device.unwanted(name, prepared.bytes, keep=keep) if both else []
            self.device.put(name, Held(checkpoint, prepared.file), pins=pins)
            self._take_off(unwanted)
        self._settle()
        self._count(disk_loads=1, disk_seconds=checkpoint.load_seconds)
        return checkpoint

    def fetch(self, name: str, sooner: Sequence[str], turn: Turn) -> bool:
        """From disk into host memory, if there is room beside those that are wanted sooner."""
        began = time.perf_counter()
        prepared = self._prepared(name)
        with self.state:
            if not self.host.promise(sum(prepared.weights.values()), keep=sooner):
                return False
        parcel = None
        try:
            parcel = ahead(prepared, turn)
        finally:
            with self.state:
                now = self.good.get(name, prepared.file)
                self.host.deliver(name, parcel if now.marks == prepared.file.marks else None)
        self._count(prefetches=1, prefetch_seconds=time.perf_counter() - began)
        return True

    def leave(self, names: Sequence[str]) -> None:
        """Off the device, into host memory where there is room. ``state`` must not be held: it is
        a copy that may take seconds."""
        with self.state:
            self._take_off(names)
        self._settle()

    def drop(self, name: str) -> None:
        """Off the device and out of host memory."""
        with self.state:
            self._vacated = self.device.pop(name) is not None
            self._count(evictions=self._vacated)
            self.host.pop(name)
        self._settle()

    def _take_off(self, names: Sequence[str]) -> None:
        """Nobody finds them on the device any more. Those that host memory has room for are in its
        books from now on, so that others leave it first; :meth:`_settle` must follow."""
        for name in names:
            held = self.device.pop(name)
            if held is None:
                continue
            self._vacated = True
            self._count(evictions=1)
            fits = sum(held.checkpoint.weights.values()) <= self.host.budget
            if fits and not held.checkpoint.squeezed:
                self.host.put(name, left(held))

    def _settle(self) -> None:
        """Have the weights of all that has left in host memory, but for what others on the device
        need; so what was in common with one that is gone leaves too."""
        if not self._vacated:
            return
        self._vacated = False
        with self.state:
            needed, parcels = self.device.needed, self.host.parcels
        for name, parcel in parcels.items():
            try:
                parcel.settle(needed)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                log.warning("no host memory for %s, which is let go of", name)
                with self.state:
                    self.host.pop(name)
        del parcels
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _prepared(self, name: str) -> Prepared:
        files = tuple(self._files)
        file = find(files, CHECKPOINT, name)
        vae = external_vae(file.path, [one.path for one in files if one.kind == VAE])
        tiny = needed_decoder(files, file) if self._profile.vae == "taesd" else None
        prepared = prepare(file, self._profile, self._device, vae=vae, tiny=tiny)
        prepared = replace(prepared, saved=self._saved[prepared.vae_marks])
        return prepared.streamed() if (name, file.marks) in self._too_large else prepared

    @property
    def _modules(self) -> list[nn.Module]:
        """All models on the device."""
        with self.state:
            return list(self.device.modules)

    def _load(self, name: str, prepared: Prepared, gone: Sequence[str], turn: Turn) -> Checkpoint:
        """Read it; if that fails, what had to leave for it comes back if host memory has it.

        One that the device has no memory for though nothing else is there is streamed.
        """
        try:
            try:
                return prepared.load(self._modules, turn=turn)
            except Exception as error:
                alone = not self._modules and prepared.may_stream
                if not alone or not out_of_memory(error):
                    raise
                traceback.clear_frames(error.__traceback__)
            self._too_large.add((name, prepared.file.marks))
            return prepared.streamed().load(turn=turn)
        except Exception as error:
            if not isinstance(error, DoesNotFit) and not out_of_memory(error):
                self._restore(gone)
            raise

    def _restore(self, names: Sequence[str]) -> None:
        for name in names:
            with self.state:
                parcel = self.host.pop(name)
            if parcel is None:
                continue
            try:
                held = Held(parcel.unpack(self._modules, nullcontext), parcel.file)
            except Exception:  # of two errors the first one counts; it is read anew when wanted
                log.exception("%s does not come back", name)
                return
            with self.state:
                self.device.put(name, held)

    def _count(self, **more: float) -> None:
        with self.state:
            self.statistics = self.statistics.plus(**more)

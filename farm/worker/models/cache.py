"""The checkpoints held by one worker: on its device, and behind that in host memory."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from farm.errors import CheckpointError, Conflict
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.device import DeviceTier, Held
from farm.worker.models.host import HostTier, Parcel
from farm.worker.models.kinds import CHECKPOINT, VAE
from farm.worker.models.library import find
from farm.worker.models.loader import Prepared, prepare
from farm.worker.models.prefetch import Prefetcher
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


class ModelCache:
    """Loads checkpoints when asked for, and keeps the last used ones within two budgets.

    What leaves the device stays in host memory while there is room, and returns from there. What
    is wanted next is read into host memory ahead, while the device works.
    Parts that checkpoints have in common are held, and counted, once.

    Safe with threads: one load at a time; those who ask for the same checkpoint share it, and
    those who ask for a resident one never wait for a load.

    Args:
        files: every known asset; looked through anew for each load, so it may be a
            :class:`farm.worker.models.library.Library` that changes.
        profile: its ``weights_bytes`` is the budget of the device.
        host_bytes: budget of host memory for checkpoints that are not on the device.
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
        self._resident = DeviceTier(profile)
        self._host = HostTier(host_bytes)
        self._prefetcher = Prefetcher(self._missing, self._fetch)
        self._coming: str | None = None
        self._too_large: set[str] = set()
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
            return self._resident.bytes

    @property
    def statistics(self) -> CacheStatistics:
        """The counts so far."""
        return self._statistics

    @property
    def loading(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._loading.locked() or self._prefetcher.busy

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

    def prefetch(self, names: Sequence[str]) -> None:
        """These will be asked for, the first one next: have them in host memory by then, as many
        as there is room for. Waits for nothing, and says nothing of what fails."""
        if self._host.budget:
            self._prefetcher.want(names)

    def pin(self, name: str) -> Checkpoint:
        """:meth:`get`, and keep it resident until as many calls of :meth:`unpin`."""
        return self._obtain(name, pins=1)

    def unpin(self, name: str) -> None:
        """Undo one :meth:`pin`."""
        with self._state:
            self._resident.unpin(name)

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
            if self._resident.pinned(name):
                raise Conflict(
                    f"{name} is in use.",
                    field="checkpoint",
                    value=name,
                    remedy="Cancel the jobs that need it, or wait for them.",
                )
            self._take_off([name], keep=False)
            self._host.pop(name)

    def shed(self) -> bool:
        """Make room, as the device's memory ran out: have all leave that are not in use; or else
        do without recorded forwards; or else have the weights of UNets leave, and pass through
        the device in each forward.

        Returns:
            Whether anything left.
        """
        with self._loading, self._state:
            idle = self._resident.idle
            self._leave(idle)
            if idle:
                return True
            left = [checkpoint.give_up_speed() for checkpoint in self._resident.checkpoints]
            if not any(left):
                left = [checkpoint.stream() for checkpoint in self._resident.checkpoints]
        if any(left):
            torch.cuda.empty_cache()
        return any(left)

    def drop_changed(self) -> None:
        """Let go of checkpoints that another good file goes by the name of now, unless in use."""
        with self._state:
            held = {**self._host.files, **self._resident.files}
        now = self._good
        for name, file in held.items():
            if now.get(name, file).marks != file.marks:
                with suppress(Conflict):
                    self.evict(name)

    @property
    def _good(self) -> Mapping[str, AssetFile]:
        """The usable checkpoints that there are, by name."""
        return {
            file.name: file for file in self._files if file.kind == CHECKPOINT and not file.error
        }

    def _obtain(self, name: str, *, pins: int, busy: bool = False) -> Checkpoint:
        if held := self._hit(name, pins):
            return held
        with self._loading:
            if held := self._hit(name, pins):
                return held
            with self._announced(name):
                loaded = self._return(name) or self._read(name, busy=busy)
                with self._state:
                    self._resident.put(name, loaded, pins=pins)
        return loaded.checkpoint

    @contextmanager
    def _announced(self, name: str) -> Iterator[None]:
        """In the block it is loaded, and so by nobody else."""
        with self._state:
            self._coming = name
        try:
            self._prefetcher.join(name)
            yield
        finally:
            with self._state:
                self._coming = None

    def _missing(self, name: str) -> bool:
        """Whether it is neither here nor on its way to the device."""
        with self._state:
            return not (name in self._resident or name in self._host or name == self._coming)

    def _fetch(self, name: str, sooner: Sequence[str], turn: Turn) -> bool:
        """From disk into host memory, if there is room beside those that are wanted sooner."""
        began = time.perf_counter()
        prepared = self._prepared(name)
        with self._state:
            if not self._host.promise(prepared.bytes, keep=sooner):
                return False
        parcel = None
        try:
            parcel = _ahead(prepared, turn)
        finally:
            with self._state:
                now = self._good.get(name, prepared.file)
                self._host.deliver(name, parcel if now.marks == prepared.file.marks else None)
        self._count(prefetches=1, prefetch_seconds=time.perf_counter() - began)
        return True

    def _hit(self, name: str, pins: int) -> Checkpoint | None:
        with self._state:
            checkpoint = self._resident.use(name, pins)
            if checkpoint is not None:
                self._count(hits=1)
            return checkpoint

    def _return(self, name: str) -> Held | None:
        """From host memory."""
        began = time.perf_counter()
        with self._state:
            parcel = self._host.get(name)
            if parcel is None:
                return None
            unwanted = self._resident.unwanted(name, parcel.bytes)
            self._host.pop(name)  # first, lest those that leave push it out
        self._leave(unwanted)
        checkpoint = parcel.unpack(self._modules)
        self._count(host_loads=1, host_seconds=time.perf_counter() - began)
        return Held(checkpoint, parcel.file)

    def _read(self, name: str, *, busy: bool) -> Held:
        """From disk. While the device computes nothing there is room for others to stay until
        all is read, so they survive a file that breaks in the middle."""
        with self._prefetcher.standing_aside():
            prepared = self._prepared(name)
            with self._state:
                unwanted = self._resident.unwanted(name, prepared.bytes)
            room = self._profile.memory_bytes - SPARE - self.bytes
            both = not busy and prepared.bytes <= room
            if not both:
                self._leave(unwanted)
            checkpoint = self._load(name, prepared, () if both else unwanted)
            if both:
                self._leave(unwanted)
        self._count(disk_loads=1, disk_seconds=checkpoint.load_seconds)
        return Held(checkpoint, prepared.file)

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
        with self._state:
            return list(self._resident.modules)

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
            with self._state:
                for other in gone:
                    if kept := self._host.pop(other):
                        self._resident.put(other, Held(kept.unpack(self._modules), kept.file))
            raise

    def _leave(self, names: Sequence[str]) -> None:
        with self._state:
            self._take_off(names, keep=True)
        if names and self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _take_off(self, names: Sequence[str], *, keep: bool) -> None:
        """Off the device, into host memory if it is to be kept and there is room."""
        for name in names:
            held = self._resident.pop(name)
            if held is None:
                continue
            self._count(evictions=1)
            if keep and held.checkpoint.bytes <= self._host.budget:
                held.checkpoint.to_host(self._resident.modules)
                self._host.put(name, _left(held))

    def _count(self, **more: float) -> None:
        with self._state:
            now = {name: getattr(self._statistics, name) + value for name, value in more.items()}
            self._statistics = replace(self._statistics, **now)


def _left(held: Held) -> Parcel:
    """A checkpoint whose weights were moved to host memory."""

    def unpack(_: Sequence[nn.Module]) -> Checkpoint:
        held.checkpoint.to_device()
        return held.checkpoint

    return Parcel(held.file, held.checkpoint.held, unpack)


def _ahead(prepared: Prepared, turn: Turn) -> Parcel:
    """A checkpoint in host memory that has not been on the device yet."""
    fetched = prepared.fetch(turn)

    def unpack(beside: Sequence[nn.Module]) -> Checkpoint:
        return prepared.load(beside, fetched=fetched)

    parts = {fetched[part]: size for part, size in prepared.sizes.items()}
    return Parcel(prepared.file, parts, unpack)

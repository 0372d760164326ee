"""The checkpoints held by one worker: on its device, and behind that in host memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial

import torch

from farm.errors import Conflict
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.guests import Guest
from farm.worker.models.precedence import Precedence
from farm.worker.models.prefetch import Prefetcher
from farm.worker.models.reader import Turn
from farm.worker.models.statistics import CacheStatistics
from farm.worker.models.tiers import Tiers

RELENT = 600.0
"""Seconds after which a UNet that was streamed for want of memory is tried whole again. To read it
takes some; what wanted the memory may have gone."""


class ModelCache:
    """Loads checkpoints when asked for, and keeps the last used ones within two budgets.

    What leaves the device stays in host memory while there is room, and returns from there. What
    is wanted next is read into host memory ahead, while the device works.
    Parts that checkpoints have in common are held, and counted, once.

    Safe with threads: one load at a time; those who ask for the same checkpoint share it, and
    those who ask for a resident one never wait for a load. What comes and goes does so under one
    lock, and the books are kept under another, which nobody holds while weights are copied.

    Args:
        files: every known asset; looked through anew for each load, so it may be a
            :class:`farm.worker.models.library.Library` that changes.
        profile: its ``weights_bytes`` is the budget of the device.
        host_bytes: budget of host memory for checkpoints that are not on the device.

    Attributes:
        guests: what lies on the device beside checkpoints.
        replaced: how many were let go of as another file goes by their name. Until then they made
            what they make of the file before, whatever the assets say.
    """

    def __init__(
        self,
        files: Iterable[AssetFile],
        profile: MemoryProfile,
        device: torch.device,
        *,
        host_bytes: int = 0,
    ) -> None:
        self._device = device
        self._tiers = Tiers(files, profile, device, host_bytes)
        self._prefetcher = Prefetcher(self._missing, self._tiers.fetch)
        self._coming: Counter[str] = Counter()
        self._needed: Collection[str] = ()
        self._precedence = Precedence()
        self._loading = threading.Lock()
        self.replaced = 0
        self.guests: list[Guest] = []
        self._state = self._tiers.state

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the checkpoints on the device, the least recently used first."""
        with self._state:
            return tuple(self._tiers.device)

    @property
    def in_host(self) -> tuple[str, ...]:
        """Names of the checkpoints in host memory, the first to go first."""
        with self._state:
            return tuple(self._tiers.host)

    @property
    def bytes(self) -> int:
        """Device memory of all weights."""
        with self._state:
            return self._tiers.device.bytes

    @property
    def guest_bytes(self) -> int:
        """Device memory of the guests."""
        return sum(guest.bytes for guest in self.guests)

    @property
    def recorded(self) -> Mapping[str, int]:
        """Device memory of recorded forwards, of the checkpoints whose forwards are recorded."""
        with self._state:
            return self._tiers.device.recorded

    @property
    def statistics(self) -> CacheStatistics:
        """The counts so far."""
        return self._tiers.statistics

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

    def peek(self, name: str) -> Checkpoint:
        """:meth:`get`, but to look at one that is here is no use of it."""
        with self._state:
            checkpoint = self._tiers.device.peek(name)
        return checkpoint or self.get(name)

    @property
    def squeezed(self) -> Sequence[str]:
        """Checkpoints that were streamed for want of memory, for which nobody has asked for
        :data:`RELENT` seconds: read anew they would be quicker."""
        with self._state:
            here = self._tiers.device.checkpoints
        return [each.name for each in here if each.squeezed_seconds > RELENT]

    def need(self, names: Collection[str]) -> None:
        """Jobs that are here need these, and no others: no :meth:`warm` makes them leave."""
        self._needed = names

    def warm(self, name: str) -> None:
        """:meth:`get` while the device computes: others leave before this one comes, but for those
        that jobs need. It is given up if the device runs out of memory meanwhile, and begun anew
        where a :meth:`get` came that waits for another one.

        Raises:
            DoesNotFit: it does not fit beside what jobs need.
            Unavailable: others had to be loaded each time.
        """
        load = partial(self._obtain, name, pins=0, busy=True)
        self._precedence.patiently(name, load)

    def prefetch(self, names: Sequence[str]) -> None:
        """These will be asked for, the first one next: have them in host memory by then, as many
        as there is room for. Waits for nothing, and says nothing of what fails."""
        if self._tiers.host.budget:
            self._prefetcher.want(names)

    def pin(self, name: str) -> Checkpoint:
        """:meth:`get`, and keep it resident until as many calls of :meth:`unpin`."""
        return self._obtain(name, pins=1)

    def unpin(self, name: str) -> None:
        """Undo one :meth:`pin`."""
        with self._state:
            self._tiers.device.unpin(name)

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
        with self._loading:
            with self._state:
                pinned = self._tiers.device.pinned(name)
            if pinned:
                raise Conflict(
                    f"{name} is in use.",
                    field="checkpoint",
                    value=name,
                    remedy="Cancel the jobs that need it, or wait for them.",
                )
            self._tiers.drop(name)

    def shed(self) -> bool:
        """Make room, as the device's memory ran out: have guests leave; or else all that are not in
        use; or else do without recorded forwards; or else have the weights of UNets leave, and
        pass through the device in each forward. A checkpoint that is being warmed is given up.

        Returns:
            Whether anything left.
        """
        if self.shed_idle():
            return True
        with self._loading:
            with self._state:
                here = self._tiers.device.checkpoints
            left = self.give_up_speed() or sum(each.stream() for each in here) > 0
        if left:
            torch.cuda.empty_cache()
        return left

    def dismiss(self) -> bool:
        """Have guests leave the device; those at work come back. For the engine's thread.

        Returns:
            Whether there was one.
        """
        left = sum(guest.leave() for guest in self.guests) > 0
        if left and self._device.type == "cuda":
            torch.cuda.empty_cache()
        return left

    def shed_idle(self) -> bool:
        """:meth:`shed` what nobody is the slower for."""
        if self.dismiss():
            return True
        self._precedence.short = True
        with self._loading:
            self._precedence.short = False
            with self._state:
                idle = self._tiers.device.idle
            self._tiers.leave(idle)
        return bool(idle)

    def shed_host(self) -> bool:
        """Make room, as the host's memory ran out: let go for good of what waits there, and keep
        less from now on. On a CPU that is the device's memory: :meth:`shed`.

        Returns:
            Whether anything left.
        """
        if self._device.type == "cpu":
            return self.shed()
        with self._state:
            return self._tiers.host.shrink()

    def give_up_speed(self) -> bool:
        """Do without recorded forwards; False where there were none. For the engine's thread."""
        with self._state:
            here = self._tiers.device.checkpoints
        return sum(checkpoint.give_up_speed() for checkpoint in here) > 0

    def drop_changed(self) -> None:
        """Let go of checkpoints that another good file goes by the name of now, unless in use."""
        with self._state:
            held = {**self._tiers.host.files, **self._tiers.device.files}
        now = self._tiers.good
        for name, file in held.items():
            if now.get(name, file).marks != file.marks:
                with suppress(Conflict):
                    self.evict(name)
                    self.replaced += 1

    def _obtain(self, name: str, *, pins: int, busy: bool = False) -> Checkpoint:
        if found := self._tiers.use(name, pins):
            return found
        hurry = nullcontext() if busy else self._precedence.hurry(name)
        with hurry, self._announced(name), self._loading:
            if found := self._tiers.use(name, pins):
                return found
            aside = partial(self._precedence.turn, name)
            keep, turn = (self._needed, aside) if busy else ((), nullcontext)
            return self._tiers.back(name, pins=pins, keep=keep, turn=turn) or self._read(
                name, pins=pins, keep=keep, turn=turn, busy=busy
            )

    @contextmanager
    def _announced(self, name: str) -> Iterator[None]:
        """In the block it is loaded, and so not fetched besides."""
        with self._state:
            self._coming[name] += 1
        try:
            self._prefetcher.join(name)
            yield
        finally:
            with self._state:
                self._coming[name] -= 1

    def _missing(self, name: str) -> bool:
        """Whether it is neither here nor on its way to the device."""
        with self._state:
            here = (*self._tiers.device, *self._tiers.host)
            return name not in here and not self._coming[name]

    def _read(
        self, name: str, *, pins: int, keep: Collection[str], turn: Turn, busy: bool
    ) -> Checkpoint:
        with self._prefetcher.standing_aside():
            return self._tiers.read(name, pins=pins, keep=keep, turn=turn, busy=busy)

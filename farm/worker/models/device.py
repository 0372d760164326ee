"""The checkpoints on one device, within a budget of bytes."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from farm.errors import DoesNotFit
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint


@dataclass(frozen=True)
class Held:
    """A checkpoint on the device, and the file it was read from."""

    checkpoint: Checkpoint
    file: AssetFile


class DeviceTier:
    """Checkpoints by name, the least recently used first, some of them pinned. Parts that several
    have in common count once. Its owner keeps threads apart."""

    def __init__(self, profile: MemoryProfile) -> None:
        self._profile = profile
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._pins: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._held))

    def __contains__(self, name: str) -> bool:
        return name in self._held

    @property
    def checkpoints(self) -> Sequence[Checkpoint]:
        """All of them."""
        return [held.checkpoint for held in self._held.values()]

    @property
    def files(self) -> Mapping[str, AssetFile]:
        """What each was read from."""
        return {name: held.file for name, held in self._held.items()}

    @property
    def modules(self) -> Mapping[nn.Module, int]:
        """All models here, and the bytes of each."""
        return _parts(self._held.values())

    @property
    def needed(self) -> Collection[nn.Module]:
        """All models of those here, wherever their weights lie."""
        return {module for held in self._held.values() for module in held.checkpoint.weights}

    @property
    def bytes(self) -> int:
        """Memory of all of them."""
        return sum(self.modules.values())

    @property
    def recorded(self) -> Mapping[str, int]:
        """Memory that recorded forwards hold, of those whose forwards are recorded."""
        found = {name: held.checkpoint.recorded_bytes for name, held in self._held.items()}
        return {name: size for name, size in found.items() if size is not None}

    @property
    def idle(self) -> Sequence[str]:
        """Those that are not pinned."""
        return [name for name in self._held if not self._pins[name]]

    def peek(self, name: str) -> Checkpoint | None:
        """The checkpoint, if it is here; that is no use of it."""
        held = self._held.get(name)
        return held.checkpoint if held else None

    def use(self, name: str, pins: int) -> Checkpoint | None:
        """The checkpoint, if it is here, and so many pins more on it."""
        held = self._held.get(name)
        if held is None:
            return None
        self._held.move_to_end(name)
        self._pins[name] += pins
        return held.checkpoint

    def put(self, name: str, held: Held, *, pins: int = 0) -> None:
        """It has come."""
        self._held[name] = held
        self._pins[name] += pins

    def pop(self, name: str) -> Held | None:
        """Take it out, if it is here."""
        return self._held.pop(name, None)

    def unpin(self, name: str) -> None:
        """One pin less."""
        if self._pins[name] < 1:
            raise ValueError(f"{name!r} is not pinned")
        self._pins[name] -= 1

    def pinned(self, name: str) -> bool:
        """Whether it must stay."""
        return self._pins[name] > 0

    def unwanted(self, name: str, needed: int, *, keep: Collection[str] = ()) -> list[str]:
        """The least recently used that must leave for ``needed`` bytes.

        Args:
            keep: must stay like those that are pinned.

        Raises:
            DoesNotFit: that would not be enough; ``name`` is what does not.
        """
        in_use = [other for other in self._held if self._pins[other] or other in keep]
        budget = self._profile.weights_bytes
        if needed > budget - _size(self._held[other] for other in in_use):
            raise self._too_large(name, needed, in_use)
        staying = dict(self._held)
        for other in self._held:
            if _size(staying.values()) + needed <= budget:
                break
            if other not in in_use:
                del staying[other]
        return [other for other in self._held if other not in staying]

    def _too_large(self, name: str, needed: int, in_use: Sequence[str]) -> DoesNotFit:
        beside = f" beside {', '.join(in_use)}, in use" if in_use else ""
        return DoesNotFit(
            f"{name} needs {needed / GIB:.1f} GiB; the {self._profile.name} profile has "
            f"{self._profile.weights_bytes / GIB:.1f} GiB for checkpoints{beside}.",
            field="checkpoint",
            value=name,
            remedy="Use a smaller checkpoint or a card with more memory.",
        )


def _parts(held: Iterable[Held]) -> dict[nn.Module, int]:
    parts: dict[nn.Module, int] = {}
    for one in held:
        parts |= one.checkpoint.held
    return parts


def _size(held: Iterable[Held]) -> int:
    return sum(_parts(held).values())

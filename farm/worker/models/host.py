"""Host memory: checkpoints that have left the device, and such as will come to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping

from torch import nn

from farm.worker.models.catalogue import AssetFile
from farm.worker.models.parcels import Parcel


class HostTier:
    """Parcels within a budget, the least recently used ones leaving first. Parts that several
    have in common count once. Its owner keeps threads apart.

    Attributes:
        budget: bytes of host memory.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._parcels: OrderedDict[str, Parcel] = OrderedDict()
        self._promised = 0

    def __iter__(self) -> Iterator[str]:
        """Names, the first to go first."""
        return iter(tuple(self._parcels))

    def __contains__(self, name: str) -> bool:
        return name in self._parcels

    @property
    def files(self) -> Mapping[str, AssetFile]:
        """What each was read from."""
        return {name: parcel.file for name, parcel in self._parcels.items()}

    @property
    def parcels(self) -> Mapping[str, Parcel]:
        """All of them, by name."""
        return dict(self._parcels)

    def get(self, name: str) -> Parcel | None:
        """What goes by this name, if it is here."""
        return self._parcels.get(name)

    def pop(self, name: str) -> Parcel | None:
        """Take it out, if it is here."""
        return self._parcels.pop(name, None)

    def put(self, name: str, parcel: Parcel) -> None:
        """Keep it, and let others go for it; one that is larger than the budget is not kept."""
        if parcel.bytes <= self.budget:
            self._parcels[name] = parcel
            self._trim(())

    def promise(self, needed: int, *, keep: Collection[str]) -> bool:
        """Hold room for a parcel that is on its way, but not at the cost of those to ``keep``.

        Returns:
            Whether there is so much room; then :meth:`deliver` must follow.
        """
        kept = {name: parcel for name, parcel in self._parcels.items() if name in keep}
        if _bytes(kept) + needed > self.budget:
            return False
        self._promised = needed
        self._trim(keep)
        return True

    def deliver(self, name: str, parcel: Parcel | None) -> None:
        """The parcel that room was promised to has come; None where it never will."""
        self._promised = 0
        if parcel:
            self.put(name, parcel)

    def shrink(self) -> bool:
        """Let go of the first to go, and keep no more than what is left from now on; False where
        nothing is here."""
        if not self._parcels:
            return False
        self._parcels.popitem(last=False)
        self.budget = _bytes(self._parcels)
        return True

    def _trim(self, keep: Collection[str]) -> None:
        for name in self:
            if _bytes(self._parcels) + self._promised <= self.budget:
                return
            if name not in keep:
                del self._parcels[name]


def _bytes(parcels: Mapping[str, Parcel]) -> int:
    parts: dict[nn.Module, int] = {}
    for parcel in parcels.values():
        parts |= parcel.parts
    return sum(parts.values())

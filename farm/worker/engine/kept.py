"""What was made once, kept by a byte budget for those that ask for it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """What was used last, as much as fits in ``budget_bytes``.

    Args:
        origin: what all is made with beside its key. When it is no longer what it was, all is
            forgotten.
        size: bytes of one.

    Attributes:
        made_with: the origin of what is here.
    """

    def __init__(
        self, budget_bytes: int, origin: Callable[[], object], size: Callable[[Value], int]
    ) -> None:
        self._budget = budget_bytes
        self._origin = origin
        self._size = size
        self.made_with = origin()
        self._bytes = 0
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """What is known by this key, if it is still here."""
        if self._origin() != self.made_with:
            self.made_with = self._origin()
            self._values.clear()
            self._bytes = 0
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def fits(self, size: int) -> bool:
        """Whether so many bytes can be kept at all."""
        return size <= self._budget

    def put(self, key: Key, value: Value) -> None:
        """Keep something that is not here, and let go of what was used longest ago and no longer
        fits; what does not fit alone is not kept, and nothing goes for it."""
        size = self._size(value)
        if key in self._values or not self.fits(size):
            return
        self._values[key] = value
        self._bytes += size
        while self._bytes > self._budget:
            _, oldest = self._values.popitem(last=False)
            self._bytes -= self._size(oldest)

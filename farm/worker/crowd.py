"""A queue between many threads that wait and one that serves all of them together."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Generic, TypeVar

TOGETHER = 64

T = TypeVar("T")


class Crowd(Generic[T]):
    """Who has come is taken in groups: all that wait, up to :data:`TOGETHER`."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()

    def add(self, one: T) -> None:
        """Come last."""
        self._queue.put(one)

    def close(self) -> None:
        """Let those who have come be the last ones."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[list[T]]:
        """Group after group, each of one at least; it waits for them, until closed."""
        closed = False
        while not closed:
            group: list[T] = []
            while not group or (len(group) < TOGETHER and not self._queue.empty()):
                one = self._queue.get()
                if one is None:
                    closed = True
                    break
                group.append(one)
            if group:
                yield group

"""Chunks of 75 tokens, as webui divides prompts into them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

CHUNK = 75
BACKTRACK = 20
"""Tokens after the last comma that a full chunk leaves to the next one, at most."""

T = TypeVar("T")


class Token(NamedTuple, Generic[T]):
    """A token, or something in the place of ``length`` tokens, and its weight."""

    part: T
    weight: float = 1.0
    length: int = 1


def divide(sections: Iterable[Iterable[Token[T]]], comma: T) -> list[list[Token[T]]]:
    """At least one chunk. What stands for several tokens is never cut in two, and neither is what
    follows a comma closely: it moves to the next chunk whole.

    Args:
        sections: of the prompt, divided by BREAKs. Each but the last ends a chunk.
        comma: what the token of a comma is.
    """
    writer = _Writer(comma)
    for number, section in enumerate(sections):
        if number:
            writer.end()
        for token in section:
            writer.add(token)
    if writer.current or not writer.chunks:
        writer.end()
    return writer.chunks


class _Writer(Generic[T]):
    """Chunks as they fill up.

    Attributes:
        chunks: that have ended.
        current: the one that has not.
    """

    def __init__(self, comma: T) -> None:
        self.chunks: list[list[Token[T]]] = []
        self.current: list[Token[T]] = []
        self._comma = comma
        self._length = 0
        self._kept = 0
        self._after_comma = 0

    def add(self, token: Token[T]) -> None:
        is_comma = token.part == self._comma
        # The comma itself counts among the tokens behind it, as in webui.
        near = self._kept and CHUNK - self._after_comma < BACKTRACK
        if near and self._length == CHUNK and not is_comma:
            self._move()
        if self._length + token.length > CHUNK:
            self.end()
        self.current.append(token)
        self._length += token.length
        if is_comma:
            self._kept, self._after_comma = len(self.current), self._length

    def end(self) -> None:
        self.chunks.append(self.current)
        self.current = []
        self._length = self._kept = self._after_comma = 0

    def _move(self) -> None:
        """End the chunk at its last comma, and begin the next one with what follows."""
        tail = self.current[self._kept :]
        del self.current[self._kept :]
        self.end()
        self.current, self._length = tail, sum(token.length for token in tail)

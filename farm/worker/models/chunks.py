"""A prompt's tokens in chunks of 75, as webui divides them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from farm.worker.models.embeddings import Embedding
from farm.worker.models.tokenizer import CHUNK, LENGTH

BACKTRACK = 20
"""Tokens after the last comma that a full chunk leaves to the next one, at most."""

PLACEHOLDER = 0


class Token(NamedTuple):
    """A token's id, or an embedding in its place, and its weight."""

    part: int | Embedding
    weight: float

    @property
    def length(self) -> int:
        return 1 if isinstance(self.part, int) else len(self.part)


Chunk: TypeAlias = list[Token]


def divide(sections: Iterable[Iterable[Token]], comma: int) -> list[Chunk]:
    """At least one chunk. An embedding is never cut in two, and neither is what follows a comma
    closely: it moves to the next chunk whole.

    Args:
        sections: of the prompt, divided by BREAKs. Each but the last ends a chunk.
        comma: the id of the token of a comma.
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


class _Writer:
    """Chunks as they fill up.

    Attributes:
        chunks: that have ended.
        current: the one that has not.
    """

    def __init__(self, comma: int) -> None:
        self.chunks: list[Chunk] = []
        self.current: Chunk = []
        self._comma = comma
        self._length = 0
        self._kept = 0
        self._after_comma = 0

    def add(self, token: Token) -> None:
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


@dataclass(frozen=True)
class Frame:
    """One chunk as a text encoder reads it.

    Attributes:
        ids: 77 of them: start, tokens, end, padding.
        weights: one for each; 1 but for tokens.
        embeddings: by the place of their first vector.
    """

    ids: list[int]
    weights: list[float]
    embeddings: dict[int, Embedding]


def frame(chunk: Sequence[Token], tokenizer: Any) -> Frame:
    """Frame up to 75 tokens as this tokenizer's text encoder was trained."""
    ids: list[int] = [tokenizer.bos_token_id]
    weights = [1.0]
    embeddings: dict[int, Embedding] = {}
    for token in chunk:
        if isinstance(token.part, int):
            ids.append(token.part)
        else:
            embeddings[len(ids)] = token.part
            # Not the end token, by whose place the summary is found.
            ids += [PLACEHOLDER] * token.length
        weights += [token.weight] * token.length
    ids.append(tokenizer.eos_token_id)
    ids += [tokenizer.pad_token_id] * (LENGTH - len(ids))
    return Frame(ids, weights + [1.0] * (LENGTH - len(weights)), embeddings)

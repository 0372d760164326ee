"""Chunks of tokens as text encoders read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from farm.spec.prompt.chunks import Token
from farm.worker.models.embeddings import Embedding
from farm.worker.models.tokenizer import LENGTH

PLACEHOLDER = 0

Chunk: TypeAlias = list[Token[int | Embedding]]
"""Ids of tokens, and embeddings in the place of several."""


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


def frame(chunk: Sequence[Token[int | Embedding]], tokenizer: Any) -> Frame:
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

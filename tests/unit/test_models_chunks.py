"""Chunks of 75 tokens: commas, BREAKs, embeddings. Ids stand for words; 0 is the comma."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farm.spec.prompt.chunks import Token, divide
from farm.worker.models.chunks import frame
from farm.worker.models.embeddings import Embedding

COMMA = 0
TOKENIZER = SimpleNamespace(bos_token_id=100, eos_token_id=101, pad_token_id=102)


def embedding(count: int) -> Embedding:
    return Embedding("ink", {8: torch.zeros(count, 8)})


def token(part: int | Embedding, weight: float = 1.0) -> Token[Any]:
    return Token(part, weight, 1 if isinstance(part, int) else len(part))


def lengths(*sections: list[int | Embedding]) -> list[int]:
    tokens = [[token(part) for part in section] for section in sections]
    return [sum(one.length for one in chunk) for chunk in divide(tokens, COMMA)]


def words(count: int) -> list[Any]:
    return [1] * count


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ([[]], [0]),
        ([words(1)], [1]),
        ([words(75)], [75]),
        ([words(76)], [75, 1]),
        ([words(151)], [75, 75, 1]),
        # The comma is the 56th of 75: it and the 19 behind it are 20.
        ([[*words(55), COMMA, *words(20)]], [56, 20]),
        # One further back is too far.
        ([[*words(54), COMMA, *words(21)]], [75, 1]),
        ([[*words(55), COMMA, *words(19)]], [75]),
        ([[*words(70), COMMA, *words(2), COMMA, *words(3)]], [74, 3]),
        ([[*words(74), COMMA, *words(2)]], [75, 2]),
        # A comma that does not fit begins the next chunk.
        ([[*words(70), COMMA, *words(4), COMMA, 1]], [75, 2]),
        # The next chunk looks for commas of its own.
        ([[*words(70), COMMA, *words(90)]], [71, 75, 15]),
        ([[*words(70), COMMA, *words(60), COMMA, *words(90)]], [71, 61, 75, 15]),
        # BREAK ends a chunk, even an empty one; at the end of the prompt it begins none.
        ([words(2), words(3)], [2, 3]),
        ([[], words(3)], [0, 3]),
        ([words(3), []], [3]),
        ([words(3), [], words(1)], [3, 0, 1]),
        ([words(75), words(1)], [75, 1]),
        ([[], []], [0]),
        ([[*words(60), COMMA], words(20)], [61, 20]),
        # Embeddings stay whole, where webui loses one that a comma moves.
        ([[*words(73), embedding(2)]], [75]),
        ([[*words(73), embedding(3)]], [73, 3]),
        ([[*words(70), COMMA, 1, embedding(3), 1]], [71, 5]),
        ([[embedding(75), embedding(75)]], [75, 75]),
    ],
)
def test_tokens_are_divided(sections: list[list[Any]], expected: list[int]) -> None:
    assert lengths(*sections) == expected


@given(st.lists(st.lists(st.integers(0, 5) | st.integers(1, 75).map(embedding), max_size=120)))
def test_nothing_is_lost_and_no_chunk_is_too_long(sections: list[list[Any]]) -> None:
    tokens = [[token(part) for part in section] for section in sections]
    chunks = divide(tokens, COMMA)
    assert [one for chunk in chunks for one in chunk] == [one for own in tokens for one in own]
    assert all(sum(one.length for one in chunk) <= 75 for chunk in chunks)


def test_a_frame_is_77_ids_with_their_weights() -> None:
    ink = embedding(2)
    found = frame([token(5, 1.2), token(ink, 0.5), token(6)], TOKENIZER)
    assert found.ids == [100, 5, 0, 0, 6, 101, *[102] * 71]
    assert found.weights == [1.0, 1.2, 0.5, 0.5, *[1.0] * 73]
    assert found.embeddings == {2: ink}

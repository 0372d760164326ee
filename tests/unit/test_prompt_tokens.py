"""Tokens without CLIP's library are those of the library."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from farm.spec.prompt.tokens import tokens
from farm.worker.models.tokenizer import clip_tokenizer

ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"), max_codepoint=0x1FAFF)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a red apple", ["a</w>", "red</w>", "apple</w>"]),
        ("A  Red,\n\tAPPLE", ["a</w>", "red</w>", ",</w>", "apple</w>"]),
        ("the cat's 12 hats", ["the</w>", "cat</w>", "'s</w>", "1</w>", "2</w>", "hats</w>"]),
        ("inkwash", ["ink", "wash</w>"]),
    ],
)
def test_tokens(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@given(st.text(ASSIGNED, max_size=12) | st.text("aes 'tdlv,(8½é中😀", max_size=20))
@example("İstanbul naïve Å ﬁ x\u0301 '’s DON'T \x1c\x1f\x85\xa0\u200b½²Ⅷ😀🏳️‍🌈")
@example("masterpiece, best quality, 8k uhd, (photorealistic:1.4), 1girl_standing--")
def test_they_are_the_library_s(text: str) -> None:
    library: Any = clip_tokenizer("eos")
    assert tokens(text) == library.tokenize(text)


def test_a_word_of_20_000_letters_is_read_too() -> None:
    assert len(tokens("qzjx" * 5_000)) > 5_000

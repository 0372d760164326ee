"""CLIP's tokenizer, from the vocabulary that ships with Farm."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

from transformers import CLIPTokenizer

from farm.spec.prompt.chunks import CHUNK
from farm.spec.prompt.tokens import END_OF_WORD, byte_symbols, merges

START, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"eos": END, "zero": "!"}
LENGTH = CHUNK + 2


@cache
def clip_tokenizer(pad: Literal["eos", "zero"]) -> CLIPTokenizer:
    """The tokenizer of OpenAI's CLIP (https://arxiv.org/abs/2103.00020), 49 408 tokens.

    Args:
        pad: ``eos`` fills up with the end token, as CLIP-L was trained; ``zero`` with id 0, as
            OpenCLIP's bigG was.
    """
    pairs: Any = merges()
    symbols = list(byte_symbols().values())
    words = symbols + [symbol + END_OF_WORD for symbol in symbols]
    words += [first + second for first, second in pairs] + [START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=pairs,
        pad_token=PADS[pad],
        model_max_length=LENGTH,
    )

"""CLIP's tokenizer, from the vocabulary that ships with Farm."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any, Literal

from transformers import CLIPTokenizer

VOCABULARY = Path(__file__).parent / "bundles" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
COMMA = ",</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
PADS = {"eos": END, "zero": "!"}
MERGES = 49_152 - 256 - 2
LENGTH = 77
CHUNK = LENGTH - 2


@cache
def clip_tokenizer(pad: Literal["eos", "zero"]) -> CLIPTokenizer:
    """The tokenizer of OpenAI's CLIP (https://arxiv.org/abs/2103.00020), 49 408 tokens.

    Args:
        pad: ``eos`` fills up with the end token, as CLIP-L was trained; ``zero`` with id 0, as
            OpenCLIP's bigG was.
    """
    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        merges = [line.rstrip("\n") for line in file][1 : MERGES + 1]
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    symbols = _byte_symbols()
    words = symbols + [symbol + "</w>" for symbol in symbols]
    words += [merge.replace(" ", "") for merge in merges] + [START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=pairs,
        pad_token=PADS[pad],
        model_max_length=LENGTH,
    )


def _byte_symbols() -> list[str]:
    """One printable character for each byte: itself where it prints, else one above 255.

    The order is that of the vocabulary: printing bytes first (GPT-2's byte-level BPE).
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printing += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printing]
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(len(others))]

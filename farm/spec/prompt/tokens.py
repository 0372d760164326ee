"""CLIP's tokens without CLIP: byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) with the
vocabulary of Radford et al. 2021 (arXiv 2103.00020).

The worker reads prompts with the tokenizer of a library; this one, which needs no model and no
library, finds the same tokens, so that they can be counted where there is no GPU.
"""

from __future__ import annotations

import gzip
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

VOCABULARY = Path(__file__).parents[2] / "data" / "clip" / "bpe_simple_vocab_16e6.txt.gz"
MERGES = 49_152 - 256 - 2
END_OF_WORD = "</w>"
COMMA = f",{END_OF_WORD}"

_CONTRACTIONS = ("'re", "'ve", "'ll", "'s", "'t", "'m", "'d")


def tokens(text: str) -> list[str]:
    """The tokens of a text, as the vocabulary spells them; :data:`COMMA` is a comma's."""
    plain = unicodedata.normalize("NFC", text).lower()
    return [token for word in _words(plain) for token in _encoded(word)]


@cache
def merges() -> list[tuple[str, str]]:
    """Pairs of tokens that become one, the most frequent first."""
    with gzip.open(VOCABULARY, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : MERGES + 1]
    pairs = (line.split(" ") for line in lines)
    return [(first, second) for first, second in pairs]


@cache
def byte_symbols() -> dict[int, str]:
    """One printable character for each byte: itself where it prints, else one above 255.

    The order is that of the vocabulary: printing bytes first (GPT-2's byte-level BPE).
    """
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printing += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printing]
    return {byte: chr(byte) for byte in printing} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


def _words(text: str) -> Iterator[str]:
    """Runs of letters, single digits, runs of other marks, and English contractions."""
    place = 0
    while place < len(text):
        contraction = next((c for c in _CONTRACTIONS if text.startswith(c, place)), None)
        if contraction:
            yield contraction
            place += len(contraction)
            continue
        kind = _kind(text[place])
        end = place + 1
        if kind in ("letter", "mark"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[place:end]
        place = end


@lru_cache(maxsize=4096)
def _kind(character: str) -> str:
    # Python alone takes these four separators for spaces.
    if character.isspace() and not "\x1c" <= character <= "\x1f":
        return "space"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "mark")


@cache
def _ranks() -> dict[tuple[str, str], int]:
    return {pair: rank for rank, pair in enumerate(merges())}


@lru_cache(maxsize=16_384)
def _encoded(word: str) -> tuple[str, ...]:
    """A word's bytes, joined pair by pair, the most frequent pair first."""
    symbols = byte_symbols()
    parts: list[str] = [symbols[byte] for byte in word.encode("utf-8", "replace")]
    parts[-1] += END_OF_WORD
    ranks = _ranks()
    following = [*range(1, len(parts)), -1]
    before = list(range(-1, len(parts) - 1))
    # A heap, because a prompt may be one word of 20 000 letters.
    heap = [
        (ranks[pair], place, pair) for place, pair in enumerate(pairwise(parts)) if pair in ranks
    ]
    heapify(heap)
    while heap:
        _, place, pair = heappop(heap)
        second = following[place]
        if second < 0 or (parts[place], parts[second]) != pair:
            continue
        parts[place], parts[second] = parts[place] + parts[second], ""
        following[place] = following[second]
        if following[second] >= 0:
            before[following[second]] = place
        for left, right in ((before[place], place), (place, following[place])):
            new = (parts[left], parts[right])
            if left >= 0 and right >= 0 and new in ranks:
                heappush(heap, (ranks[new], left, new))
    return tuple(part for part in parts if part)

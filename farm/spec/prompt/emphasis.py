"""Emphasis: how much each piece of a text counts, and where its chunks end.

``(a)`` counts 1.1 times, ``[a]`` 1/1.1 times, ``(a:1.3)`` 1.3 times; nested brackets multiply.
``\\(``, ``\\)``, ``\\[``, ``\\]`` and ``\\\\`` are the characters themselves. Brackets that are not
closed reach to the end of the text; those that were never opened are text. ``BREAK`` ends a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, TypeAlias

from farm.errors import InvalidInput

STRONGER, WEAKER = 1.1, 1 / 1.1
MAX_WEIGHT = 1000.0

_TOKEN = re.compile(
    r"""
    \\ (?P<escaped> [()\[\]\\] )            # a bracket or backslash that is text
    | (?P<dropped> \\ )                     # any other backslash is nothing
    | (?P<open> [(\[] )
    | : \s* (?P<weight> [+-]?[.\d]+ ) \s* \)
    | (?P<close> [)\]] )
    | [^\\()\[\]:]+ | :
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\bBREAK\b")
_ANY_WEIGHT = re.compile(r":\s*[+-]?([.\d]+)")


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of text of one weight; 1 is plain."""

    text: str
    weight: float


Section: TypeAlias = tuple[Segment, ...]
"""What stands between two BREAKs; neighbours differ in weight, no text is empty."""


def sections(text: str) -> tuple[Section, ...]:
    """Divide a text at its BREAKs, and into segments of one weight.

    A weight that is no number (``(a:1.2.3)``) is text; webui 1.8 fails. A BREAK inside of
    brackets is a BREAK; webui 1.8 reads it as a word.

    Returns:
        At least one section; without BREAK exactly one. Sections may be empty.

    Raises:
        InvalidInput: weights multiply to more than ``MAX_WEIGHT``.
    """
    reader = _Reader()
    for token in _TOKEN.finditer(text):
        reader.read(token)
    return tuple(reader.sections())


def is_mild(text: str) -> bool:
    """Whether :func:`sections` surely takes the text, told ten times as quickly: what is in it
    cannot multiply to more than ``MAX_WEIGHT``, however its brackets stand."""
    try:
        bound: float = STRONGER ** text.count("(")
        for number in _ANY_WEIGHT.findall(text):
            bound *= max(1.0, float(number))
    except (ValueError, OverflowError):
        return False
    return bound <= MAX_WEIGHT


@dataclass(slots=True)
class _Brackets:
    """All brackets of one shape. Bracket 0 is around everything.

    Round and square brackets do not know each other: ``([a)]`` is one of each.
    """

    unclosed: float
    factors: list[float] = field(default_factory=lambda: [1.0])
    parents: list[int] = field(default_factory=lambda: [0])
    innermost: int = 0

    def open(self) -> None:
        self.parents.append(self.innermost)
        self.factors.append(self.unclosed)
        self.innermost = len(self.factors) - 1

    def close(self, factor: float) -> None:
        self.factors[self.innermost] = factor
        self.innermost = self.parents[self.innermost]

    def weights(self) -> list[float]:
        """For each bracket, the product of its factor and those around it."""
        found = [1.0]
        for parent, factor in zip(self.parents[1:], self.factors[1:], strict=True):
            found.append(found[parent] * factor)
        return found


class _Piece(NamedTuple):
    """Text, and the brackets it stands in."""

    text: str
    round: int
    square: int


class _Reader:
    """What was read so far: pieces, divided by BREAKs."""

    def __init__(self) -> None:
        self._round = _Brackets(STRONGER)
        self._square = _Brackets(WEAKER)
        self._sections: list[list[_Piece]] = [[]]

    def read(self, token: re.Match[str]) -> None:
        if token["escaped"]:
            self._add(token["escaped"])
        elif token["dropped"]:
            return
        elif token["open"]:
            (self._round if token["open"] == "(" else self._square).open()
        elif token["weight"] and self._round.innermost:
            self._weigh(token)
        elif token["close"] == ")" and self._round.innermost:
            self._round.close(STRONGER)
        elif token["close"] == "]" and self._square.innermost:
            self._square.close(WEAKER)
        else:
            self._divide(_BREAK.split(token[0]))

    def sections(self) -> Iterator[Section]:
        round_weights, square_weights = self._round.weights(), self._square.weights()
        for pieces in self._sections:
            weighted = (
                (piece.text, round_weights[piece.round] * square_weights[piece.square])
                for piece in pieces
            )
            yield tuple(
                Segment("".join(text for text, _ in group), _bounded(weight))
                for weight, group in groupby(weighted, key=lambda pair: pair[1])
            )

    def _divide(self, texts: Sequence[str]) -> None:
        """Add texts with a BREAK between each two, which takes the spaces around it along."""
        for place, text in enumerate(texts):
            if place:
                self._sections.append([])
            kept = text if place == len(texts) - 1 else text.rstrip()
            self._add(kept.lstrip() if place else kept)

    def _weigh(self, token: re.Match[str]) -> None:
        try:
            factor = float(token["weight"])
        except ValueError:
            self._add(token[0][:-1])
            factor = STRONGER
        self._round.close(factor)

    def _add(self, text: str) -> None:
        if text:
            piece = _Piece(text, self._round.innermost, self._square.innermost)
            self._sections[-1].append(piece)


def _bounded(weight: float) -> float:
    # Written this way round, it refuses what is not a number too.
    if not abs(weight) <= MAX_WEIGHT:
        raise InvalidInput(
            f"The brackets in the prompt multiply to a weight of {weight:g}.",
            field="prompt",
            value=weight,
            remedy=f"Stay within {MAX_WEIGHT:g}; 0.5 to 1.5 is usual.",
        )
    return weight

"""Composition: a prompt of several parts, ``a cat :1.2 AND a dog :-0.5``.

Each part is a prompt of its own (Liu et al. 2022, arXiv 2206.01714): the image moves away from
the negative prompt by the sum of what each part asks for, times the part's weight, 1 by default.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from farm.errors import InvalidInput

MAX_WEIGHT = 1000.0
MAX_PARTS = 32

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r":\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\Z")


class Part(NamedTuple):
    """One of the prompts, and how much it counts."""

    text: str
    weight: float = 1.0


def parts(prompt: str) -> tuple[Part, ...]:
    """Divide a prompt at every word ``AND``, before any bracket is looked at.

    A weight is a signed number after the last colon of a part. A prompt without AND has no
    weight, and ``at 10:30`` is a time; webui 1.8 takes that to be a weight of 30.

    Raises:
        InvalidInput: a weight beyond ``MAX_WEIGHT``, or more than ``MAX_PARTS`` parts: each is
            work for the model in every step.
    """
    texts = _AND.split(prompt)
    if len(texts) > MAX_PARTS:
        raise InvalidInput(
            f"The prompt has {len(texts)} parts joined by AND.",
            field="prompt",
            value=len(texts),
            remedy=f"Join at most {MAX_PARTS}; write `and` where you mean the word.",
        )
    if len(texts) == 1:
        return (Part(prompt),)
    return tuple(map(_weighed, texts))


def _weighed(text: str) -> Part:
    # Looked for only behind the last colon, so that the time it takes grows with the text alone.
    colon = text.rfind(":")
    found = _WEIGHT.match(text, colon) if colon >= 0 else None
    if not found:
        return Part(text.strip())
    weight = float(found[1])
    if abs(weight) > MAX_WEIGHT:
        raise InvalidInput(
            f"A part of the prompt has the weight {found[1][:20]}.",
            field="prompt",
            value=found[1],
            remedy=f"Stay within {MAX_WEIGHT:g}; -1 to 2 is usual.",
        )
    return Part(text[:colon].strip(), weight)

"""Extra networks in a prompt: ``<lora:name:te:unet>``, as webui writes them.

A tag is ``<lora:NAME>``, then up to two strengths: of the text encoders (1 where left out) and of
the UNet (as the text encoders' where left out), by place or by name, ``te=0.5:unet=0.8``.
``<lyco:...>`` means the same. Tags are cut out of the text that is encoded. Two tags of one name
add up.

Only the prompt has tags. In a negative prompt ``<lora:...>`` is text like any other, as in webui.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from farm.errors import InvalidInput
from farm.spec.prompt.comments import without_comments

_KINDS = ("lora", "lyco")
_TAG = re.compile(r"<(\w+):([^>]*)>")
_OPEN_TAG = re.compile(r"<(?:lora|lyco):[^>]*$", re.IGNORECASE)
_STRENGTHS = ("te", "unet")
_FORM = "Write <lora:NAME>, <lora:NAME:0.8> or <lora:NAME:te=0.5:unet=0.8>."


@dataclass(frozen=True, slots=True, order=True)
class Lora:
    """A LoRA by its name, and how strongly it is added: 1 as trained, negative the other way."""

    name: str
    strength: float


Loras: TypeAlias = tuple[Lora, ...]
"""Sorted by name, each name once, no strength 0: equal sets are equal values."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt taken apart.

    Attributes:
        text: what is encoded, without tags.
        te: LoRAs of the text encoders.
        unet: LoRAs of the UNet.
    """

    text: str
    te: Loras = ()
    unet: Loras = ()


def parse(prompt: str) -> Prompt:
    """Take comments and tags out of a prompt.

    Raises:
        InvalidInput: of field ``prompt``, for a tag that is malformed or of another kind. webui
            renders without such a network; here nobody finds out from the picture.
    """
    prompt = without_comments(prompt)
    if "<" not in prompt:
        return Prompt(prompt)
    found = [_read(match) for match in _TAG.finditer(prompt)]
    text = _TAG.sub("", prompt)
    if unclosed := _OPEN_TAG.search(text):
        raise _wrong(unclosed[0][:80], "is not closed", "Close it with >.")
    te = _set([Lora(name, te) for name, te, _ in found])
    return Prompt(text, te, _set([Lora(name, unet) for name, _, unet in found]))


def hashes(prompt: Prompt, hash_of: Callable[[str], str | None]) -> str | None:
    """webui's ``Lora hashes``: name and hash of each network whose hash is known.

    Args:
        hash_of: a LoRA's hash by its name.
    """
    names = sorted({lora.name for lora in prompt.te + prompt.unet})
    known = ((name, hash_of(name)) for name in names)
    return ", ".join(f"{name}: {known_hash}" for name, known_hash in known if known_hash) or None


def _set(loras: Sequence[Lora]) -> Loras:
    strengths: dict[str, float] = {}
    for lora in loras:
        strengths[lora.name] = strengths.get(lora.name, 0.0) + lora.strength
    return tuple(sorted(Lora(name, total) for name, total in strengths.items() if total))


def _read(match: re.Match[str]) -> tuple[str, float, float]:
    """Name, strength of the text encoders, strength of the UNet."""
    tag, kind = match[0], match[1].lower()
    if kind not in _KINDS:
        raise _wrong(tag, f"asks for a network of kind {kind!r}, which Farm has not", _FORM)
    name, *arguments = (part.strip() for part in match[2].split(":"))
    if not name or "<" in name:
        raise _wrong(tag, "names no network" if not name else "has a < in its name", _FORM)
    strengths: dict[str, float] = {}
    for place, argument in enumerate(arguments):
        key, value = _keyed(tag, place, argument)
        if key in strengths:
            raise _wrong(tag, f"gives {key} twice", _FORM)
        strengths[key] = _number(tag, value)
    te = strengths.get("te", 1.0)
    return name, te, strengths.get("unet", te)


def _keyed(tag: str, place: int, argument: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in argument.partition("="))
    if not equals:
        if place >= len(_STRENGTHS):
            raise _wrong(tag, f"has more than two strengths: {argument!r}", _FORM)
        return _STRENGTHS[place], argument
    if key not in _STRENGTHS:
        raise _wrong(tag, f"has an argument {key!r}; Farm knows te and unet", _FORM)
    return key, value


def _number(tag: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(tag, f"has a strength {value!r}, which is not a number", _FORM)
    return number


def _wrong(tag: str, what: str, remedy: str) -> InvalidInput:
    return InvalidInput(f"The tag {tag} {what}.", field="prompt", value=tag, remedy=remedy)

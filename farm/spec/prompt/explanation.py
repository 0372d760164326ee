"""What a prompt means, told to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from farm.spec import networks
from farm.spec.networks import Loras
from farm.spec.prompt.chunks import Token, divide
from farm.spec.prompt.comments import without_comments
from farm.spec.prompt.composition import parts
from farm.spec.prompt.editing import Edit, Timeline, all_changes, is_plain, parse
from farm.spec.prompt.emphasis import Section, sections
from farm.spec.prompt.table import Schedule, compile_prompt, schedule, timeline
from farm.spec.prompt.tokens import COMMA, tokens
from farm.spec.samplers import sampler_name


@dataclass(frozen=True, slots=True)
class Saying:
    """What a part says for some time.

    Attributes:
        first, last: calls of the model, counted from 1, both included.
        text: with its emphasis as it was written.
        sections: the same as weighted segments, divided at each BREAK.
        chunks: tokens in each chunk that text encoders read; an embedding's word counts as text.
    """

    first: int
    last: int
    text: str
    sections: tuple[Section, ...]
    chunks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ExplainedPart:
    """One part of a prompt: what it says from step to step, and how much it counts."""

    weight: float
    says: tuple[Saying, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """A prompt taken apart.

    Attributes:
        calls: of the model in all; with second order samplers two a step.
        parts: of the prompt, more than one where it is joined by AND.
        negative: what the negative prompt says.
        te_loras, unet_loras: LoRAs on the text encoders and on the UNet.
        notes: what may not mean what its author meant.
    """

    calls: int
    parts: tuple[ExplainedPart, ...]
    negative: tuple[Saying, ...]
    te_loras: Loras
    unet_loras: Loras
    notes: tuple[str, ...]


def explain(
    prompt: str, negative_prompt: str = "", *, steps: int = 20, sampler: str = "Euler a"
) -> Explanation:
    """Take a prompt apart as a job with these steps of this sampler would.

    Raises:
        InvalidInput: a malformed tag, a weight out of all bounds, or an unknown sampler.
    """
    line = timeline(sampler_name(sampler), steps)
    asked = networks.parse(prompt)
    negative = without_comments(negative_prompt)
    return Explanation(
        calls=line.steps,
        parts=tuple(
            ExplainedPart(course.weight, _says(course.schedule, line))
            for course in compile_prompt(asked.text, line)
        ),
        negative=_says(schedule(negative, line), line),
        te_loras=asked.te,
        unet_loras=asked.unet,
        notes=tuple(_notes([*(part.text for part in parts(asked.text)), negative], line)),
    )


def _says(entries: Schedule, line: Timeline) -> tuple[Saying, ...]:
    bounds = pairwise([*(entry.first for entry in entries), line.steps])
    return tuple(
        _saying(entry.text, first + 1, last)
        for entry, (first, last) in zip(entries, bounds, strict=True)
    )


def _saying(text: str, first: int, last: int) -> Saying:
    found = sections(text)
    read = (
        [Token(token) for segment in section for token in tokens(segment.text)] for section in found
    )
    return Saying(first, last, text, found, tuple(len(chunk) for chunk in divide(read, COMMA)))


def _notes(texts: Sequence[str], line: Timeline) -> Iterator[str]:
    for text in texts:
        if "[" in text and is_plain(text):
            yield f"A | or \\ out of place turns all prompt editing off in {_short(text)}."
        for change in all_changes(parse(text)):
            if isinstance(change, Edit) and line.last(change.when) == line.steps:
                yield (
                    f"[...:{change.when}] changes only after the last of {line.steps} steps. "
                    "For a weight, write (...:1.2) with round brackets."
                )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")

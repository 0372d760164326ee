"""A prompt compiled for a number of steps: which text applies when."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from farm.spec.prompt.composition import parts
from farm.spec.prompt.editing import Timeline, changes, parse, text_at
from farm.spec.samplers import SECOND_ORDER


class Entry(NamedTuple):
    """A text, with its emphasis as it was written, and the first step it applies to, from 0."""

    first: int
    text: str


Schedule: TypeAlias = tuple[Entry, ...]
"""In the order of steps, the first at 0, each another text than the one before."""


class Course(NamedTuple):
    """What one part of a prompt says from step to step, and how much it counts."""

    weight: float
    schedule: Schedule


def timeline(sampler: str, steps: int) -> Timeline:
    """What prompt editing counts as steps: calls of the model, as in webui.

    Args:
        sampler: a name of :data:`farm.spec.samplers.SAMPLERS`. One of second order has two calls
            for each of ``steps``.
    """
    return Timeline(steps * (2 if sampler in SECOND_ORDER else 1))


def compile_prompt(prompt: str, timeline: Timeline) -> tuple[Course, ...]:
    """The parts of a prompt whose comments and tags are cut out; at least one."""
    return tuple(Course(part.weight, schedule(part.text, timeline)) for part in parts(prompt))


def schedule(text: str, timeline: Timeline) -> Schedule:
    """What one part says, or a negative prompt, where AND is a word like any other."""
    parsed = parse(text)
    entries: list[Entry] = []
    for step in changes(parsed, timeline):
        said = text_at(parsed, step, timeline)
        if not entries or entries[-1].text != said:
            entries.append(Entry(step - 1, said))
    return tuple(entries)

"""Prompts as conditions of the denoising."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from farm.spec import networks
from farm.spec.job import JobSpec
from farm.spec.networks import Loras
from farm.spec.prompt.comments import without_comments
from farm.spec.prompt.table import Course, compile_prompt, schedule, timeline
from farm.worker.engine.requests import Condition, EncodeText, Made, Request

if TYPE_CHECKING:
    from farm.worker.models.text import TextEncoding


def read_prompts(
    spec: JobSpec,
) -> Generator[Request, Made[Any], tuple[tuple[Condition, ...], Condition | None]]:
    """Encode all that the prompts of a job ever say.

    Returns:
        The parts of its prompt, and its negative prompt if that has an effect.
    """
    asked = networks.parse(spec.prompt)
    line = timeline(spec.sampler, spec.steps)
    prompt = []
    for course in compile_prompt(asked.text, line):
        prompt.append((yield from _read(spec, course, asked.te)))
    if not spec.guided:
        return tuple(prompt), None
    course = Course(1.0, schedule(without_comments(spec.negative_prompt), line))
    return tuple(prompt), (yield from _read(spec, course, asked.te, negative=True))


def _read(
    spec: JobSpec, course: Course, loras: Loras, *, negative: bool = False
) -> Generator[Request, Made[TextEncoding], Condition]:
    rows = {text: row for row, text in enumerate(dict.fromkeys(e.text for e in course.schedule))}
    request = EncodeText(spec.checkpoint, tuple(rows), negative, spec.reading, loras)
    made = yield request
    entries = tuple((entry.first, rows[entry.text]) for entry in course.schedule)
    return Condition(made, entries, course.weight)

"""Prompts as conditions of the denoising."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from farm.spec.passes import Pass
from farm.spec.prompt.comments import without_comments
from farm.spec.prompt.table import Course, compile_prompt, schedule
from farm.spec.reading import ReadingOptions
from farm.worker.engine.requests import Condition, EncodeText, Made, Request

if TYPE_CHECKING:
    from farm.worker.models.text import TextEncoding


def read_prompts(
    own: Pass, reading: ReadingOptions, *, strict: bool
) -> Generator[Request, Made[Any], tuple[tuple[Condition, ...], Condition | None]]:
    """Encode all that the prompts of a pass ever say.

    Returns:
        The parts of its prompt, and its negative prompt if that has an effect.
    """
    prompt = []
    for course in compile_prompt(own.asked.text, own.timeline):
        prompt.append((yield from _read(own, reading, course, strict=strict)))
    if not own.guided:
        return tuple(prompt), None
    course = Course(1.0, schedule(without_comments(own.negative_prompt), own.timeline))
    away = yield from _read(own, reading, course, strict=strict, negative=True)
    return tuple(prompt), away


def _read(
    own: Pass, reading: ReadingOptions, course: Course, *, strict: bool, negative: bool = False
) -> Generator[Request, Made[TextEncoding], Condition]:
    rows = {text: row for row, text in enumerate(dict.fromkeys(e.text for e in course.schedule))}
    request = EncodeText(own.checkpoint, tuple(rows), negative, reading, own.asked.te, strict)
    made = yield request
    entries = tuple((entry.first, rows[entry.text]) for entry in course.schedule)
    return Condition(made, entries, course.weight)

"""Fields of a job that several parts of it have, and what they may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from farm.errors import InvalidInput
from farm.spec import networks
from farm.spec.names import named
from farm.spec.problems import refusal
from farm.spec.prompt.comments import without_comments
from farm.spec.prompt.composition import parts
from farm.spec.prompt.emphasis import is_mild, sections
from farm.spec.samplers import sampler_name

MAX_PROMPT = 20_000
"""Characters."""
MAX_PIXELS = 16_777_216
MAX_STEPS = 150
MAX_GUIDANCE = 30.0


def _sound(prompt: str) -> str:
    # Most are plain, and a batch may list millions of them.
    if "<" not in prompt and "AND" not in prompt and is_mild(prompt):
        return prompt
    try:
        for part in parts(networks.parse(prompt).text):
            sections(part.text)
    except InvalidInput as error:
        raise refusal(error) from None
    return prompt


def _sound_weights(prompt: str) -> str:
    if is_mild(prompt):
        return prompt
    try:
        sections(without_comments(prompt))
    except InvalidInput as error:
        raise refusal(error) from None
    return prompt


Text = Annotated[str, Field(max_length=MAX_PROMPT)]
Prompt = Annotated[Text, AfterValidator(_sound)]
NegativePrompt = Annotated[Text, AfterValidator(_sound_weights)]
SamplerName = Annotated[str, named(sampler_name)]

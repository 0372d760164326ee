"""JobSpec: one image to make, frozen and complete."""

from __future__ import annotations

from math import fsum, inf
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from farm.errors import InvalidInput
from farm.spec import networks
from farm.spec.guidance import GuidanceOptions
from farm.spec.problems import refusal
from farm.spec.prompt.comments import without_comments
from farm.spec.prompt.composition import Part, parts
from farm.spec.prompt.emphasis import is_mild, sections
from farm.spec.prompt.table import timeline
from farm.spec.reading import ReadingOptions
from farm.spec.samplers import SAMPLERS, sampler_name
from farm.spec.sampling import (
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    SIDE_STEP,
    NoiseOptions,
    SamplingOptions,
)

MAX_PROMPT = 20_000
MAX_PIXELS = 16_777_216
MAX_STEPS = 150
MAX_GUIDANCE = 30.0

Options = TypeVar("Options", bound=BaseModel)
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_STEP)]


def _sampler(written: object) -> object:
    if not isinstance(written, str):
        return written
    try:
        return sampler_name(written)
    except InvalidInput as error:
        raise refusal(error) from None


class JobSpec(SamplingOptions, NoiseOptions, ReadingOptions, GuidanceOptions):
    """Everything that decides the pixels of one image.

    Attributes:
        checkpoint: name of a registered checkpoint.
        prompt, negative_prompt: text, at most 20 000 characters each; the prompt may name
            extra networks, see :mod:`farm.spec.networks`.
        width, height: pixels, multiples of 8, 64..4096 and at most 16 megapixels together.
        steps: sampler steps, 1..150.
        sampler: one of :data:`farm.spec.samplers.SAMPLERS`, or an alias.
        cfg_scale: classifier-free guidance, 0..30; at 1 the negative prompt has no effect.
        seed: 0..2**63-1.
        strict: run in a pinned batch shape, so that the image is bit-equal under any load.

    and those of :class:`SamplingOptions`, :class:`NoiseOptions`, :class:`ReadingOptions` and
    :class:`GuidanceOptions`.
    """

    checkpoint: str = Field(min_length=1, max_length=200)
    prompt: str = Field(default="", max_length=MAX_PROMPT)
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT)
    width: Side
    height: Side
    steps: int = Field(default=20, ge=1, le=MAX_STEPS)
    sampler: Annotated[str, BeforeValidator(_sampler)] = "Euler a"
    cfg_scale: float = Field(default=7.0, ge=0, le=MAX_GUIDANCE)
    seed: int = Field(ge=0, le=MAX_SEED)
    strict: bool = False

    @field_validator("prompt")
    @classmethod
    def _sound(cls, prompt: str) -> str:
        # Most are plain, and a batch may list millions of them.
        if "<" not in prompt and "AND" not in prompt and is_mild(prompt):
            return prompt
        try:
            for part in parts(networks.parse(prompt).text):
                sections(part.text)
        except InvalidInput as error:
            raise refusal(error) from None
        return prompt

    @field_validator("negative_prompt")
    @classmethod
    def _sound_weights(cls, prompt: str) -> str:
        if is_mild(prompt):
            return prompt
        try:
            sections(without_comments(prompt))
        except InvalidInput as error:
            raise refusal(error) from None
        return prompt

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the prompt, at least one."""
        return parts(networks.parse(self.prompt).text)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has an effect."""
        towards = self.cfg_scale * fsum(part.weight for part in self.parts)
        return towards != 1 or SAMPLERS[self.sampler].negative

    @property
    def model_rows(self) -> int:
        """Rows that the model computes for it in all; NGMS, which depends on the model's noise
        levels, makes them fewer."""
        calls, guidance = timeline(self.sampler, self.steps).steps, self.guidance
        guided = sum(guidance.guides(call, calls, inf) for call in range(calls))
        return calls * len(self.parts) + guided * self.guided

    @property
    def sampling(self) -> SamplingOptions:
        """How the sampler is set."""
        return self._only(SamplingOptions)

    @property
    def noise(self) -> NoiseOptions:
        """Where noise comes from."""
        return self._only(NoiseOptions)

    @property
    def reading(self) -> ReadingOptions:
        """How prompts are read."""
        return self._only(ReadingOptions)

    @property
    def guidance(self) -> GuidanceOptions:
        """When the negative prompt counts."""
        return self._only(GuidanceOptions)

    def _only(self, options: type[Options]) -> Options:
        return options(**{name: getattr(self, name) for name in options.model_fields})

    @model_validator(mode="after")
    def _not_too_large(self) -> JobSpec:
        if self.width * self.height > MAX_PIXELS:
            raise ValueError(f"width: {self.width}x{self.height} is more than 16 megapixels")
        return self

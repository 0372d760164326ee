"""JobSpec: one image to make, frozen and complete."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from farm.errors import InvalidInput
from farm.spec import networks

MAX_PROMPT = 20_000
MIN_SIDE, MAX_SIDE, SIDE_STEP = 64, 4096, 8
MAX_PIXELS = 16_777_216
MAX_STEPS = 150
MAX_GUIDANCE = 30.0
MAX_SEED = 2**63 - 1

SAMPLERS = ("Euler", "Euler a", "DPM++ 2M Karras")
"""Sampler names as people know them from webui, in its order of fame."""

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_STEP)]


class JobSpec(BaseModel):
    """Everything that decides the pixels of one image.

    Attributes:
        checkpoint: name of a registered checkpoint.
        prompt, negative_prompt: text, at most 20 000 characters each; the prompt may name
            extra networks, see :mod:`farm.spec.networks`.
        width, height: pixels, multiples of 8, 64..4096 and at most 16 megapixels together.
        steps: sampler steps, 1..150.
        sampler: one of :data:`SAMPLERS`.
        cfg_scale: classifier-free guidance, 0..30; at 1 the negative prompt has no effect.
        seed: 0..2**63-1.
        strict: run in a pinned batch shape, so that the image is bit-equal under any load.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    checkpoint: str = Field(min_length=1, max_length=200)
    prompt: str = Field(default="", max_length=MAX_PROMPT)
    negative_prompt: str = Field(default="", max_length=MAX_PROMPT)
    width: Side
    height: Side
    steps: int = Field(default=20, ge=1, le=MAX_STEPS)
    sampler: str = "Euler a"
    cfg_scale: float = Field(default=7.0, ge=0, le=MAX_GUIDANCE)
    seed: int = Field(ge=0, le=MAX_SEED)
    strict: bool = False

    @field_validator("prompt")
    @classmethod
    def _sound_tags(cls, prompt: str) -> str:
        try:
            networks.parse(prompt)
        except InvalidInput as error:
            told = {"problem": error.message.rstrip("."), "remedy": error.remedy}
            raise PydanticCustomError("network_tag", "{problem}", told) from None
        return prompt

    @model_validator(mode="after")
    def _known_and_sane(self) -> JobSpec:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler: {self.sampler!r} is not one of {', '.join(SAMPLERS)}")
        if self.width * self.height > MAX_PIXELS:
            raise ValueError(f"width: {self.width}x{self.height} is more than 16 megapixels")
        return self

"""JobSpec: one image to make, frozen and complete."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, NamedTuple, TypeVar

from pydantic import BaseModel, Field, model_validator

from farm.errors import InvalidInput
from farm.spec.fields import (
    MAX_GUIDANCE,
    MAX_PIXELS,
    MAX_STEPS,
    NegativePrompt,
    Prompt,
    SamplerName,
)
from farm.spec.guidance import GuidanceOptions
from farm.spec.hires import HiresOptions, Target, check_target, is_model
from farm.spec.passes import Pass
from farm.spec.problems import refusal
from farm.spec.prompt.table import timeline
from farm.spec.reading import ReadingOptions
from farm.spec.sampling import (
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    SIDE_STEP,
    NoiseOptions,
    SamplingOptions,
)
from farm.spec.strength import Taken, taken

Options = TypeVar("Options", bound=BaseModel)
Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_STEP)]


class Models(NamedTuple):
    """What a worker must have to make a job."""

    checkpoints: frozenset[str]
    upscalers: frozenset[str]


class JobSpec(SamplingOptions, NoiseOptions, ReadingOptions, GuidanceOptions, HiresOptions):
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

    and those of :class:`SamplingOptions`, :class:`NoiseOptions`, :class:`ReadingOptions`,
    :class:`GuidanceOptions` and :class:`HiresOptions`. Width, height, steps, sampler, checkpoint
    and guidance are those of the first pass.
    """

    checkpoint: str = Field(min_length=1, max_length=200)
    prompt: Prompt = ""
    negative_prompt: NegativePrompt = ""
    width: Side
    height: Side
    steps: int = Field(default=20, ge=1, le=MAX_STEPS)
    sampler: SamplerName = "Euler a"
    cfg_scale: float = Field(default=7.0, ge=0, le=MAX_GUIDANCE)
    seed: int = Field(ge=0, le=MAX_SEED)
    strict: bool = False

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The ways down the noise levels: one, and with a hires fix another, unless that is to
        change nothing."""
        second = self._second
        return (self._first, second) if second else (self._first,)

    @property
    def target(self) -> Target | None:
        """What its first pass's image becomes; None without a hires fix."""
        return self.enlarged(self.width, self.height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its image in pixels."""
        target = self.target
        return (target.width, target.height) if target else (self.width, self.height)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Those that it needs, the first pass's first."""
        return tuple(dict.fromkeys(each.checkpoint for each in self.passes))

    @property
    def upscalers(self) -> tuple[str, ...]:
        """The models that it needs for its second pass."""
        if self.target is None or not is_model(self.hires_upscaler):
            return ()
        return (self.hires_upscaler,)

    @property
    def models(self) -> Models:
        """The same, as whoever makes it must have them."""
        return Models(frozenset(self.checkpoints), frozenset(self.upscalers))

    @property
    def largest(self) -> dict[str, int]:
        """Pixels of the largest picture that each of its checkpoints makes."""
        found = {each.checkpoint: each.pixels for each in self.passes}
        last, (width, height) = self.passes[-1].checkpoint, self.size
        return {**found, last: max(found[last], width * height)}

    @property
    def _first(self) -> Pass:
        return Pass(
            checkpoint=self.checkpoint,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            width=self.width,
            height=self.height,
            sampler=self.sampler,
            taken=Taken(self.steps, 0),
            cfg_scale=self.cfg_scale,
            guidance=self.guidance,
            timeline=timeline(self.sampler, self.steps),
        )

    @property
    def _second(self) -> Pass | None:
        target = self.target
        if target is None or not self.denoising_strength:
            return None
        steps, sampler = self.hires_steps or self.steps, self.hires_sampler or self.sampler
        cfg_scale = self.cfg_scale if self.hires_cfg_scale is None else self.hires_cfg_scale
        before = timeline(self.sampler, self.steps).steps
        return Pass(
            checkpoint=self.hires_checkpoint or self.checkpoint,
            prompt=self.hires_prompt or self.prompt,
            negative_prompt=self.hires_negative_prompt or self.negative_prompt,
            width=target.width,
            height=target.height,
            sampler=sampler,
            taken=taken(steps, self.denoising_strength, exact=True),
            cfg_scale=cfg_scale,
            guidance=self.guidance,
            timeline=replace(timeline(sampler, steps), before=before),
        )

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
        try:
            check_target(self, self.width, self.height)
        except InvalidInput as error:
            raise refusal(error) from None
        return self

"""Passes: each way down the noise levels that an image takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import fsum, inf

from farm.spec import networks
from farm.spec.guidance import GuidanceOptions
from farm.spec.prompt.composition import Part, parts
from farm.spec.prompt.editing import Timeline
from farm.spec.samplers import SAMPLERS
from farm.spec.strength import Taken


@dataclass(frozen=True)
class Pass:
    """What is denoised, and how.

    Attributes:
        width, height: pixels.
        taken: its schedule, and the part of it that is taken.
        timeline: what prompt editing counts.
    """

    checkpoint: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    sampler: str
    taken: Taken
    cfg_scale: float
    guidance: GuidanceOptions
    timeline: Timeline

    @cached_property
    def asked(self) -> networks.Prompt:
        """The prompt, apart from its LoRAs."""
        return networks.parse(self.prompt)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the prompt, at least one."""
        return parts(self.asked.text)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has an effect."""
        towards = self.cfg_scale * fsum(part.weight for part in self.parts)
        return towards != 1 or SAMPLERS[self.sampler].negative

    @property
    def steps(self) -> int:
        """Steps that are taken, as the user counts them."""
        return self.taken.steps - self.taken.skipped

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def rows(self) -> int:
        """Rows that the model computes for it in all; NGMS, which depends on the model's noise
        levels, makes them fewer."""
        calls = self.timeline.steps
        guided = sum(self.guidance.guides(call, calls, inf) for call in range(calls))
        return calls * len(self.parts) + guided * self.guided

"""What jobs wait for, and what the device may do next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from farm.spec.networks import Loras
from farm.worker.engine.turns import Group, Weights

Stage: TypeAlias = Literal["encode", "denoise", "decode"]


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job as the batcher sees it.

    Attributes:
        order: its age, the lower the older, unique.
        stage: what it waits for.
        width, height: of its latent's image, in pixels; known before the text is encoded.
        loras: on the UNet; likewise known before.
        rows: of a forward that its next call of the model takes: one for each part of its prompt,
            and one for the negative prompt if that counts in this call.
        blocks: of 77 tokens that its texts repeat to; 1 while not encoded.
        alone: its texts cannot share a call of the model, not even with each other.
        strict: pins the shape of the forward.
        lift: precisions above the checkpoint's own in which it must be denoised.
        rank: the higher goes first, whatever its age.
        group: of those it can share a forward with.
    """

    order: int
    stage: Stage
    checkpoint: str
    width: int
    height: int
    rows: int
    blocks: int = 1
    alone: bool = False
    strict: bool = False
    loras: Loras = ()
    lift: int = 0
    rank: int = 1
    group: Group = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        weights = Weights(self.checkpoint, self.loras)
        group = Group(weights, self.width, self.height, self.lift, self.alone)
        object.__setattr__(self, "group", group)


@dataclass(frozen=True, slots=True)
class Load:
    """Make a checkpoint resident."""

    checkpoint: str


@dataclass(frozen=True, slots=True)
class Encode:
    """Encode the text that the job of this order waits for."""

    order: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode the latent of the job of this order."""

    order: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Take all these jobs one step further.

    Attributes:
        checkpoint, width, height, loras, lift: the same for all of them.
        orders: of the jobs, the oldest first.
        bucket: rows of the forward; a single job that needs more takes several forwards.
        blocks: of 77 tokens that every row's text is repeated to, where there are several rows.
    """

    checkpoint: str
    width: int
    height: int
    orders: tuple[int, ...]
    bucket: int
    blocks: int
    loras: Loras = ()
    lift: int = 0


Decision: TypeAlias = Load | Encode | Decode | Forward

"""What a recipe asks of the GPU.

Requests are values, and a value is its own content key: two requests are equal, and hash alike,
exactly when they ask for the same result. A result handed back carries the request that made
it and compares by it alone, so that what is built on results stays comparable too.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from farm.spec.networks import Loras
from farm.spec.sampling import NoiseOptions, SamplingOptions

if TYPE_CHECKING:
    from torch import Tensor

    from farm.worker.models.text import TextEncoding

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Made(Generic[T]):
    """A result, known by the request that made it."""

    by: Request
    value: T = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class EncodeText:
    """Read a prompt with a checkpoint's text encoders. Makes a ``TextEncoding``.

    Attributes:
        loras: on the text encoders.
    """

    checkpoint: str
    text: str
    negative: bool = False
    loras: Loras = ()


@dataclass(frozen=True, slots=True)
class Denoise:
    """Sample a latent from noise. Makes a [4, height/8, width/8] float32 tensor.

    Attributes:
        width, height: of the image, in pixels.
        negative: what to move away from; None without guidance, at half the work.
        cfg_scale: how far, 1 being not at all.
        seed: of all noise of this image, 0..2**63-1.
        sampling: settings of the sampler.
        noise: where noise comes from.
        strict: run in a pinned shape, bit-equal under any load.
        loras: on the UNet.
    """

    checkpoint: str
    width: int
    height: int
    sampler: str
    steps: int
    prompt: Made[TextEncoding]
    negative: Made[TextEncoding] | None
    cfg_scale: float
    seed: int
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    strict: bool = False
    loras: Loras = ()


@dataclass(frozen=True, slots=True)
class Decode:
    """Turn a latent into pixels. Makes a [height, width, 3] uint8 tensor on the CPU."""

    checkpoint: str
    latent: Made[Tensor]


Request: TypeAlias = EncodeText | Denoise | Decode

Recipe: TypeAlias = "Generator[Request, Made[Any], Tensor]"
"""How an image is made: yields requests, is sent what they made, returns the pixels."""

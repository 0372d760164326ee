"""What a recipe asks of the GPU.

Requests are values, and a value is its own content key: two requests are equal, and hash alike,
exactly when they ask for the same result. A result handed back carries the request that made
it and compares by it alone, so that what is built on results stays comparable too.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from farm.spec.guidance import GuidanceOptions
from farm.spec.networks import Loras
from farm.spec.reading import ReadingOptions
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
    """Read all that a prompt, or a part of one, says with a checkpoint's text encoders. Makes a
    ``TextEncoding`` with a row for each text.

    Attributes:
        loras: on the text encoders.
        strict: by itself, as how many are encoded together changes how numbers are rounded.
    """

    checkpoint: str
    texts: tuple[str, ...]
    negative: bool = False
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    loras: Loras = ()
    strict: bool = False

    def along(self, other: EncodeText) -> bool:
        """Whether it can be encoded together with another one."""
        return not (self.strict or other.strict) and (
            (self.checkpoint, self.reading, self.loras)
            == (other.checkpoint, other.reading, other.loras)
        )


@dataclass(frozen=True, slots=True)
class Condition:
    """What a prompt, or a part of one, says from call to call of the model.

    Attributes:
        texts: all it ever says.
        schedule: (first call, from 0; row of ``texts``) in order, the first from call 0.
        weight: how much it counts among the parts.
    """

    texts: Made[TextEncoding]
    schedule: tuple[tuple[int, int], ...] = ((0, 0),)
    weight: float = 1.0

    def row(self, call: int) -> int:
        """Which of the texts it says in a call."""
        return next(row for first, row in reversed(self.schedule) if first <= call)


@dataclass(frozen=True, slots=True)
class Begin:
    """A latent to begin with, instead of noise alone.

    Attributes:
        latent: [4, height/8, width/8], clean.
        skipped: steps of the schedule left out at the beginning, 0..steps - 1; noise of the next
            one's level is added to the latent. See :func:`farm.spec.strength.taken`.
        extra_noise: so many times standard normal noise more: the same noise, once again.
    """

    latent: Made[Tensor]
    skipped: int = 0
    extra_noise: float = 0.0


@dataclass(frozen=True, slots=True)
class Edit:
    """A picture that a model for editing is shown (InstructPix2Pix, Brooks et al. 2022,
    arXiv 2211.09800).

    Attributes:
        picture: [4, height/8, width/8], its mean latent, not scaled.
        scale: of guidance towards it, webui's "image CFG scale"; 1 is not at all.
    """

    picture: Made[Tensor]
    scale: float = 1.5


@dataclass(frozen=True, slots=True)
class Mask:
    """Where an image is made anew; elsewhere it stays what it is.

    Each estimate of the clean latent is ``share * estimate + (1 - share) * known``, and so is the
    latent in the end, as in webui with the samplers of k-diffusion. (Its DDIM, PLMS and UniPC mix
    what the model is shown instead, which leaves traces of noise outside.)

    Attributes:
        share: [height/8, width/8] float, from 0, known, to 1, made anew.
        known: [4, height/8, width/8], clean.
    """

    share: Made[Tensor]
    known: Made[Tensor]


@dataclass(frozen=True, slots=True)
class Denoise:
    """Sample a latent. Makes a [4, height/8, width/8] float32 tensor.

    Attributes:
        width, height: of the image, in pixels.
        steps: of the whole schedule.
        prompt: its parts, at least one.
        negative: what to move away from; None where it has no effect, at half the work. An edit
            that is guided towards its picture needs it.
        cfg_scale: how far, 1 being not at all.
        guidance: when.
        seed: of all noise of this image, 0..2**63-1.
        sampling: settings of the sampler.
        noise: where noise comes from.
        strict: run in a pinned shape, bit-equal under any load.
        loras: on the UNet.
        begin: what with, and where in the schedule; None for noise alone, at its top.
        edit: the picture that a model for editing changes.
        mask: where; None is everywhere.
        kept: others are likely to ask for the same: who does while it runs waits for it, and who
            does later finds it in a cache.
    """

    checkpoint: str
    width: int
    height: int
    sampler: str
    steps: int
    prompt: tuple[Condition, ...]
    negative: Condition | None
    cfg_scale: float
    seed: int
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    noise: NoiseOptions = field(default_factory=NoiseOptions)
    strict: bool = False
    loras: Loras = ()
    begin: Begin | None = None
    edit: Edit | None = None
    mask: Mask | None = None
    kept: bool = field(default=False, compare=False)

    @property
    def skipped(self) -> int | None:
        """Steps of the schedule that are left out; None where noise alone is begun with."""
        return None if self.begin is None else self.begin.skipped


@dataclass(frozen=True, slots=True)
class Decode:
    """Turn a latent into pixels. Makes a [height, width, 3] uint8 tensor on the CPU.

    Attributes:
        kept: see :class:`Denoise`.
    """

    checkpoint: str
    latent: Made[Tensor]
    kept: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class EncodeImage:
    """Turn pixels into their mean latent. Makes a [4, height/8, width/8] float32 tensor; a side
    that is no multiple of 8 is cut off there.

    Attributes:
        picture: [height, width, 3] uint8 on the CPU.
        kept: see :class:`Denoise`.
    """

    checkpoint: str
    picture: Made[Tensor]
    kept: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Upscale:
    """Have a model enlarge a picture by as much as it does. Makes a [height, width, 3] uint8 tensor
    on the CPU.

    Attributes:
        checkpoint: whose turn it is; the one that the picture is for.
        picture: [h, w, 3] uint8 on the CPU.
        upscaler: name of the model.
        kept: see :class:`Denoise`.
    """

    checkpoint: str
    picture: Made[Tensor]
    upscaler: str
    kept: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Resize:
    """Resize a latent [4, h, w], or a picture [h, w, 3] uint8, whichever the upscaler is for.

    Attributes:
        width, height: places of the latent, or pixels.
        upscaler: one of :data:`farm.spec.hires.UPSCALERS`.
    """

    source: Made[Tensor]
    width: int
    height: int
    upscaler: str


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a latent. Makes a [4, height, width] tensor."""

    latent: Made[Tensor]
    left: int
    top: int
    width: int
    height: int


Request: TypeAlias = EncodeText | Denoise | Decode | EncodeImage | Upscale | Resize | Crop

Recipe: TypeAlias = "Generator[Request, Made[Any], Tensor]"
"""How an image is made: yields requests, is sent what they made, returns the pixels."""

"""Hires fix: what a second, larger pass does with the image of the first."""

from __future__ import annotations

from math import sqrt
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from farm.errors import InvalidInput
from farm.spec.fields import MAX_GUIDANCE, MAX_PIXELS, MAX_STEPS, NegativePrompt, Prompt
from farm.spec.names import look_up, named
from farm.spec.samplers import sampler_name
from farm.spec.sampling import MAX_SIDE, MIN_SIDE, SIDE_STEP, OtherSide

LATENT_UPSCALERS = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)
"""They resize the latent, and need no VAE."""
PICTURE_UPSCALERS = ("None", "Lanczos", "Nearest")
"""They resize the decoded picture. None is Lanczos in one go."""
UPSCALERS = (*LATENT_UPSCALERS, *PICTURE_UPSCALERS)
"""Those that are always there. All others are models, and go by their files."""
UPSCALER_TITLES = {
    "RealESRGAN_x4plus": "R-ESRGAN 4x+",
    "RealESRGAN_x4plus_anime_6B": "R-ESRGAN 4x+ Anime6B",
    "RealESRGAN_x2plus": "R-ESRGAN 2x+",
    "realesr-general-x4v3": "R-ESRGAN General 4xV3",
    "realesr-general-wdn-x4v3": "R-ESRGAN General WDN 4xV3",
    "realesr-animevideov3": "R-ESRGAN AnimeVideo",
}
"""What webui calls models, by the names of their files without suffix."""
MAX_NAME = 200
_UPSCALERS = {name.casefold(): name for name in (*UPSCALERS, *UPSCALER_TITLES.values())}
HIRES_SIZES = ("hires_scale", "hires_width", "hires_height")
SIZE_FIELDS = ("width", "height", *HIRES_SIZES)
"""What decides how large a job's image becomes."""
_SAME = "use same "
"""How webui begins to say that something is as in the first pass."""


def upscaler_name(written: str) -> str:
    """The name of the upscaler that people write like this: of webui's own in any case, of a model
    as its file is called. Whether there is that file is not known here.

    Raises:
        InvalidInput: it is empty or too long.
    """
    known = _UPSCALERS.get(" ".join(written.casefold().split()))
    if known is None and not 1 <= len(written.strip()) <= MAX_NAME:
        return look_up(written, _UPSCALERS, kind="upscaler", field="hires_upscaler")
    return known or upscaler_title(written.strip())


def upscaler_title(stem: str) -> str:
    """What a model is called whose file has this name without suffix."""
    return UPSCALER_TITLES.get(stem, stem)


def is_model(upscaler: str) -> bool:
    """Whether an upscaler is a model, which a worker must have the file of."""
    return upscaler not in UPSCALERS


def own(written: str) -> str:
    """The name itself; empty where it says in webui's words that it is the first pass's."""
    return "" if written.casefold().startswith(_SAME) else written


def _own_sampler(written: str) -> str:
    return sampler_name(written) if own(written) else ""


class Target(NamedTuple):
    """What a first pass's image becomes.

    Attributes:
        width, height: of the second pass's image in pixels, multiples of 8.
        across, down: what the first one is stretched to, in pixels; a latent to an eighth of that,
            rounded down.
        left, top: places of the latent, 8 pixels each, that are cut off there afterwards.
    """

    width: int
    height: int
    across: int
    down: int
    left: int
    top: int


class HiresOptions(BaseModel):
    """The second pass of a hires fix; there is one where a scale above 1 or a side is given.

    Attributes:
        hires_scale: 1..4, how much larger the image becomes; 1 is off.
        hires_width, hires_height: pixels instead of a scale. One of them keeps the shape; of both
            the image fills all, and what stands out is cut off on both sides alike.
        hires_upscaler: one of :data:`UPSCALERS`, or the name of a model.
        hires_steps: of the second pass, 1..150; 0 for as many as the first.
        hires_sampler, hires_checkpoint: of the second pass; empty for the first's.
        hires_prompt, hires_negative_prompt: likewise, with LoRAs of their own.
        hires_cfg_scale: guidance of the second pass, 0..30; None for the first's.
        denoising_strength: 0..1, how much of an image that is begun with another is made anew.
        extra_noise: 0..1, added to what it is begun with, as a multiple of its noise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hires_scale: float = Field(default=1.0, ge=1, le=4)
    hires_width: OtherSide = 0
    hires_height: OtherSide = 0
    hires_upscaler: Annotated[str, named(upscaler_name)] = LATENT_UPSCALERS[0]
    hires_steps: int = Field(default=0, ge=0, le=MAX_STEPS)
    hires_sampler: Annotated[str, named(_own_sampler)] = ""
    hires_checkpoint: Annotated[str, named(own), Field(max_length=200)] = ""
    hires_prompt: Prompt = ""
    hires_negative_prompt: NegativePrompt = ""
    hires_cfg_scale: float | None = Field(default=None, ge=0, le=MAX_GUIDANCE)
    denoising_strength: float = Field(default=0.7, ge=0, le=1)
    extra_noise: float = Field(default=0.0, ge=0, le=1)

    @property
    def sized(self) -> bool:
        """Whether a side is given, so that the scale does not count."""
        return bool(self.hires_width or self.hires_height)

    def enlarged(self, width: int, height: int) -> Target | None:
        """What an image of this size becomes; None without a second pass.

        All numbers are webui's. A latent has whole places, so that a side may come out up to seven
        pixels smaller than it was asked for.
        """
        if not self.sized and self.hires_scale == 1:
            return None
        across, down = self._stretched(width, height)
        left = top = 0
        if self.hires_width and self.hires_height:
            left = (across - self.hires_width) // SIDE_STEP
            top = (down - self.hires_height) // SIDE_STEP
        return Target(
            width=(across // SIDE_STEP - left) * SIDE_STEP,
            height=(down // SIDE_STEP - top) * SIDE_STEP,
            across=across,
            down=down,
            left=left // 2,
            top=top // 2,
        )

    def _stretched(self, width: int, height: int) -> tuple[int, int]:
        across, down = self.hires_width, self.hires_height
        if not self.sized:
            return int(width * self.hires_scale), int(height * self.hires_scale)
        if not down or (across and width * down < across * height):
            return across, across * height // width
        return down * width // height, down


SECOND_PASS = frozenset(HiresOptions.model_fields) - {*HIRES_SIZES}
"""What says how a second pass is made, and has no effect where there is none."""


def in_vain(where: str, value: Any) -> InvalidInput:
    """What to answer who says how a second pass is to be made, and asks for none."""
    return InvalidInput(
        f"{where}: it is said of a second pass, and no job has one.",
        field=where,
        value=value,
        remedy="Ask for one, such as with hires_scale 2, or leave this out.",
    )


def check_target(options: HiresOptions, width: int, height: int) -> None:
    """The second pass of an image of this size is not too large, nor too small.

    Raises:
        InvalidInput: names the field at fault, and what would do.
    """
    target = options.enlarged(width, height)
    if target is None:
        return
    across, down = target.across, target.down
    least = min(target.width, target.height)
    if max(across, down) <= MAX_SIDE and across * down <= MAX_PIXELS and least >= MIN_SIDE:
        return
    field = "hires_scale"
    if options.sized:
        field = "hires_width" if options.hires_width else "hires_height"
    most = min(MAX_SIDE / max(width, height), sqrt(MAX_PIXELS / (width * height)))
    remedy = f"Use {int(most * 100) / 100:g} or less, or make the first pass smaller."
    if options.sized:
        remedy = "Ask for another size, or for a shape more like the first pass's."
    raise InvalidInput(
        f"{field}: {width}x{height} would be stretched to {across}x{down}; sides have {MIN_SIDE} "
        f"to {MAX_SIDE} pixels, and all is at most 16 megapixels.",
        field=field,
        value=getattr(options, field),
        remedy=remedy,
    )

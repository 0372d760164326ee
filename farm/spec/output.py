"""Output: the file format of a batch's images."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from farm.errors import InvalidInput
from farm.spec.problems import refusal

Format = Literal["png", "webp", "jpeg", "avif"]
FORMATS: tuple[str, ...] = get_args(Format)
_ALIASES = {"jpg": "jpeg"}


class _Kind(NamedTuple):
    """A format: ``quality`` is that of who names none, None where there is none."""

    mime: str
    suffix: str
    lossless: bool
    quality: int | None


_KINDS: dict[str, _Kind] = {
    "png": _Kind("image/png", ".png", True, None),
    "webp": _Kind("image/webp", ".webp", True, 90),
    "jpeg": _Kind("image/jpeg", ".jpg", False, 90),
    "avif": _Kind("image/avif", ".avif", False, 80),
}
_SUFFIXES = {kind.mime: kind.suffix for kind in _KINDS.values()}
MIMES: tuple[str, ...] = tuple(_SUFFIXES)


class Output(BaseModel):
    """How the images of a batch are written into files.

    A batch has one, beside its jobs. It is no field of a :class:`farm.spec.job.JobSpec`, which is
    all that decides pixels and nothing else: a job that is made again in another format shows the
    same picture, and no two jobs of a batch can differ in it.

    It may be written as text: ``png``, ``webp 80``, ``webp lossless``, ``jpg``.

    Attributes:
        format: ``png``, ``webp``, ``jpeg`` or ``avif``.
        lossless: each pixel is kept as it was made. PNG always is; of the others only WebP can.
        quality: 1..100 where pixels may change, else None. By default 90, for AVIF 80.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Format
    lossless: bool = Field(default=False, validate_default=True)
    quality: int | None = Field(default=None, ge=1, le=100, validate_default=True)

    @property
    def mime(self) -> str:
        return _KINDS[self.format].mime

    @property
    def suffix(self) -> str:
        """Of a file's name, with its dot."""
        return _KINDS[self.format].suffix

    def __str__(self) -> str:
        if self.quality is not None:
            return f"{self.format} {self.quality}"
        return f"{self.format} lossless" if self.format == "webp" else self.format

    @model_validator(mode="before")
    @classmethod
    def _parsed(cls, written: Any) -> Any:
        if isinstance(written, str):
            name, _, how = " ".join(written.split()).partition(" ")
            told = {"lossless": True} if how == "lossless" else {"quality": how} if how else {}
            return {"format": name, **told}
        if not isinstance(written, dict | Output):
            said = f"{written!r:.80} is no format."
            raise refusal(InvalidInput(said, remedy=f"Use one of {', '.join(FORMATS)}."))
        return written

    @field_validator("format", mode="before")
    @classmethod
    def _named(cls, name: Any) -> Any:
        return _ALIASES.get(name.lower(), name.lower()) if isinstance(name, str) else name

    @field_validator("lossless")
    @classmethod
    def _can(cls, lossless: bool, info: ValidationInfo) -> bool:
        name = info.data.get("format", "png")
        if lossless and not _KINDS[name].lossless:
            raise refusal(
                InvalidInput(
                    f"{name} cannot keep each pixel.",
                    remedy=f"Use png or webp, or {name} with a quality up to 100.",
                )
            )
        return lossless or name == "png"

    @field_validator("quality")
    @classmethod
    def _has_one(cls, quality: int | None, info: ValidationInfo) -> int | None:
        name = info.data.get("format")
        if name is None:
            return quality
        if not info.data.get("lossless"):
            return _KINDS[name].quality if quality is None else quality
        if quality is not None:
            what = name if name == "png" else f"lossless {name}"
            raise refusal(
                InvalidInput(
                    f"{what} keeps each pixel, so it has no quality.",
                    remedy="Leave it out, or use webp, jpeg or avif without lossless.",
                )
            )
        return None


PNG = Output(format="png")


def suffix_of(mime: str) -> str:
    """Of the name of a file of that media type, with its dot."""
    return _SUFFIXES.get(mime, f".{mime.rpartition('/')[2]}")

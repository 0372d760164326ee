"""Image files: pixels with the infotext that made them, in any of the formats, and read again."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import IO, Any

from PIL import ExifTags, PngImagePlugin, UnidentifiedImageError
from PIL import Image as Pillow

from farm.errors import InvalidInput
from farm.spec import usercomment
from farm.spec.output import FORMATS, Output

_SEGMENT = 65533
"""Bytes that a segment of a JPEG holds."""
_PNG_TEXT = "parameters"
_COMMENT = b"\xff\xfe"

# What each takes is in docs/performance.md.
_OPTIONS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 1},
    "webp": {"method": 2},
    "jpeg": {"optimize": True},
    # One thread: images are encoded beside each other.
    "avif": {"speed": 8, "max_threads": 1},
}


@dataclass(frozen=True)
class ImageFile:
    """What a file tells of its image: ``infotext`` is None where it has none; pixels."""

    format: str
    width: int
    height: int
    infotext: str | None


def encoded(picture: Pillow.Image, infotext: str, output: Output) -> bytes:
    """A file with the picture and its infotext, where webui and others look for it.

    That is the text ``parameters`` of a PNG, and the UserComment in the EXIF data of the others.
    The EXIF data of a JPEG ends at 64 KiB: a longer text is in its comments, as UTF-8. The same
    picture and text give the same bytes, as long as the encoder is the same.
    """
    options = dict(_OPTIONS[output.format])
    if output.quality is not None:
        options["quality"] = output.quality
    elif output.format == "webp":
        options |= {"lossless": True, "quality": 0}  # of its search: more is hardly smaller
    file = io.BytesIO()
    picture.save(file, output.format, **options, **_carrying(infotext, output.format))
    return file.getvalue()


def inspected(file: IO[bytes]) -> ImageFile:
    """What a file tells of its image, in the formats of :class:`Output`.

    Raises:
        InvalidInput: it is no such image, or its metadata are damaged.
    """
    try:
        with Pillow.open(file, formats=[name.upper() for name in FORMATS]) as image:
            return ImageFile(str(image.format).lower(), *image.size, _text(image))
    except InvalidInput:
        raise
    except UnidentifiedImageError:
        raise _unreadable("it is none of these formats") from None
    except Exception as error:  # Pillow raises whatever a damaged file leads to
        raise _unreadable(str(error)) from error


def _unreadable(why: str) -> InvalidInput:
    return InvalidInput(
        f"It is no image that can be read: {why}.",
        field="file",
        remedy="Give a PNG, WebP, JPEG or AVIF, whole and as it was made.",
    )


def _carrying(infotext: str, format: str) -> dict[str, Any]:
    if format == "png":
        info = PngImagePlugin.PngInfo()
        add = info.add_text if infotext.isascii() else info.add_itxt
        add(_PNG_TEXT, infotext)
        return {"pnginfo": info}
    data = usercomment.exif_data(infotext)
    if format == "jpeg" and len(data) > _SEGMENT:
        return {"extra": _comments(infotext.encode())}
    return {"exif": data}


def _comments(data: bytes) -> bytes:
    parts = [data[start : start + _SEGMENT] for start in range(0, len(data), _SEGMENT)]
    return b"".join(_COMMENT + (len(part) + 2).to_bytes(2, "big") + part for part in parts)


def _text(image: Pillow.Image) -> str | None:
    if isinstance(image, PngImagePlugin.PngImageFile):
        # It may stand behind the pixels too, and is seen only once those are read.
        text = image.info.get(_PNG_TEXT) or image.text.get(_PNG_TEXT)
        if text:
            return str(text)
    comment = _user_comment(image)
    if comment and comment.strip():
        return comment
    comments = [data for name, data in getattr(image, "applist", ()) if name == "COM"]
    text = b"".join(comments).decode(errors="replace")
    return text if usercomment.SURE in text else None


def _user_comment(image: Pillow.Image) -> str | None:
    if not image.info.get("exif"):
        return None
    try:
        exif = image.getexif()
        fields = exif.get_ifd(ExifTags.IFD.Exif)
        damaged = not exif or (ExifTags.IFD.Exif in exif and not fields)
    except Exception:  # as of a damaged file
        damaged = True
    if damaged:
        raise InvalidInput(
            "Its EXIF data are damaged.",
            field="file",
            remedy="Use the file as the tool wrote it that made the image.",
        )
    found = fields.get(usercomment.TAG)
    if isinstance(found, bytes):
        return usercomment.unpacked(found)
    return found if isinstance(found, str) else None

"""UserComment, the EXIF field in which image files carry text (EXIF 2.32, 4.6.5, tag 0x9286).

Eight bytes name the encoding. Of ``UNICODE`` the standard says neither which nor in what order:
tools write UTF-16 with the high byte first, as piexif and so webui do, or in the order of the
EXIF block, and some write UTF-8.
"""

from __future__ import annotations

import struct

from farm.errors import InvalidInput

TAG = 0x9286
_EXIF = 0x8769
_LONG, _OPAQUE = 4, 7
_LAYOUT = struct.Struct(">2sHI" + 2 * "HHHIII")
_UNICODE, _ASCII, _UNDEFINED = b"UNICODE\0", b"ASCII\0\0\0", bytes(8)
_MARKED = {b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
SURE = "Steps: "
"""In every infotext, and hardly anywhere that is read in the wrong encoding."""


def exif_data(text: str) -> bytes:
    """EXIF data with nothing but that field, in UTF-16; all of it has the high byte first.

    Pillow would write the field as BYTE, which others do not take for text.
    """
    value = _UNICODE + text.encode("utf-16-be")
    return (
        b"Exif\0\0"
        + _LAYOUT.pack(
            *(b"MM", 42, 8),  # the order of bytes, a magic number, where the first directory is
            *(1, _EXIF, _LONG, 1, 26, 0),  # its one entry: where the second is
            *(1, TAG, _OPAQUE, len(value), 44, 0),  # its one entry: the text behind all that
        )
        + value
    )


def unpacked(value: bytes) -> str:
    """The text of such a field, whoever wrote it.

    Raises:
        InvalidInput: it is text in no encoding that is known.
    """
    kind, data = value[:8], value[8:]
    if kind == _UNICODE:
        encoding = _wide(data)
    elif kind in (_ASCII, _UNDEFINED):
        encoding = "utf-8"
    else:
        encoding, data = "utf-8", value  # some name no encoding at all
    try:
        return data.decode(encoding).removeprefix("\ufeff").rstrip("\0")
    except UnicodeDecodeError:
        raise InvalidInput(
            f"The UserComment in its EXIF data is no text: it begins with {value[:16].hex(' ')}.",
            field="file",
            value=value[:16].hex(" "),
            remedy="Use the file as the tool wrote it that made the image.",
        ) from None


def _wide(data: bytes) -> str:
    """Which encoding ``UNICODE`` is."""
    if encoding := _MARKED.get(data[:2]):
        return encoding
    for encoding in ("utf-16-be", "utf-16-le", "utf-8"):
        if SURE in data.decode(encoding, "ignore"):
            return encoding
    # Spaces and Latin letters have a zero for their high byte.
    high, low = data[0::2].count(0), data[1::2].count(0)
    return "utf-16-le" if low > high else "utf-16-be"

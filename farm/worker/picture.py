"""Pictures: an image as a file with its infotext, and as a small WebP."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from farm.spec import imagefile
from farm.spec.output import Output
from farm.storage import ImageStore, image_path

THUMB_SIDE = 256
"""Pixels of a thumbnail's longer side."""
BLACK, FLAT = 16, 4
"""Of 255: below it a picture is almost black; within it all of a picture is alike."""


@dataclass(frozen=True)
class Encoded:
    """An image's two files, and the columns that describe them; ``suffix`` is the first one's."""

    data: bytes
    suffix: str
    thumb: bytes
    columns: dict[str, Any]


def encode(pixels: NDArray[np.uint8], infotext: str, output: Output) -> Encoded:
    """Encode ``pixels``, [height, width, 3], with ``infotext`` as webui keeps it.

    It takes up to a quarter of a second for a megapixel, or more where that is all noise: it is
    for threads that hold nobody up.
    """
    picture = Pillow.fromarray(pixels)
    data = imagefile.encoded(picture, infotext, output)
    thumb = io.BytesIO()
    small = picture.copy()
    small.thumbnail((THUMB_SIDE, THUMB_SIDE), Pillow.Resampling.LANCZOS)
    small.save(thumb, "WEBP", quality=80, method=2)
    columns = {
        "mime": output.mime,
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": picture.width,
        "height": picture.height,
        "bytes": len(data),
        "infotext": infotext,
    }
    return Encoded(data, output.suffix, thumb.getvalue(), columns)


def remark(pixels: NDArray[np.uint8]) -> str | None:
    """What its owner may want to know of a sound picture: ``almost black``, ``flat``, or nothing.

    Only numbers that are not finite are failures, and they never come this far: people do ask
    for night.
    """
    if pixels.max() < BLACK:
        return "almost black"
    return "flat" if np.ptp(pixels, axis=(0, 1)).max() < FLAT else None


def store(images: ImageStore, encoded: Encoded, job: tuple[int, int, int]) -> dict[str, Any]:
    """Put both files under names unique to (batch, ord, attempt); the row that names them."""
    where = paths(job, encoded.suffix)
    images.put(where["thumb_path"], encoded.thumb)
    images.put(where["path"], encoded.data)
    return {**where, **encoded.columns}


def paths(job: tuple[int, int, int], suffix: str) -> dict[str, str]:
    """Where the two files of (batch, ord, attempt) are kept, as columns of its row."""
    return {"path": image_path(*job, suffix), "thumb_path": image_path(*job, ".thumb.webp")}

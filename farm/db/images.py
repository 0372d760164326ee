"""Images: the one stored file of each succeeded job."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime

from psycopg.rows import DictRow

from farm.db.database import Database


@dataclass(frozen=True)
class Image:
    """A stored image; paths are relative to the image store's root."""

    path: str
    thumb_path: str
    mime: str
    sha256: str
    width: int
    height: int
    bytes: int
    infotext: str
    created_at: datetime


COLUMNS = tuple(field.name for field in fields(Image))


def selected(row: str, prefix: str = "") -> str:
    """The columns of a row of images, each named ``<prefix><column>``."""
    values = {column: f"{row}.{column}" for column in COLUMNS}
    values["sha256"] = f"encode({row}.sha256, 'hex')"
    return ", ".join(f"{value} AS {prefix}{column}" for column, value in values.items())


_FETCH = f"""
SELECT {selected("i")} FROM images i WHERE batch_id = %(batch_id)s AND ord = %(ord)s
  AND EXISTS (SELECT FROM batches WHERE id = %(batch_id)s AND state <> 'pruned')
"""


def fetch(db: Database, batch_id: int, ord: int) -> Image | None:
    row = db.one(_FETCH, {"batch_id": batch_id, "ord": ord})
    return Image(**row) if row else None


def from_row(row: DictRow, prefix: str) -> Image | None:
    """The image among joined columns named ``<prefix><column>``, if the join found one."""
    if row[f"{prefix}path"] is None:
        return None
    return Image(**{column: row[f"{prefix}{column}"] for column in COLUMNS})

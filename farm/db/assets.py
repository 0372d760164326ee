"""Assets: the checkpoint files that workers say they can load."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg.types.json import Jsonb

from farm.db.database import Database

CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Asset:
    """One file; ``error`` says why it cannot be used."""

    name: str
    family: str | None
    bytes: int
    path: str
    defaults: dict[str, Any]
    error: str | None


_REGISTER = """
INSERT INTO assets AS a (kind, name, family, bytes, path, defaults, error, seen_at)
SELECT %(kind)s, name, family, bytes, path, coalesce(defaults, '{}'), error, now()
FROM jsonb_to_recordset(%(assets)s) AS e (
    name text, family text, bytes bigint, path text, defaults jsonb, error text)
ORDER BY name
ON CONFLICT (kind, name) DO UPDATE
SET family = excluded.family, bytes = excluded.bytes, path = excluded.path,
    defaults = excluded.defaults, error = excluded.error, seen_at = now()
"""

_LISTING = """
SELECT name, family, bytes, path, defaults, error FROM assets
WHERE kind = %(kind)s ORDER BY name
"""


def register(db: Database, assets: Iterable[Asset]) -> None:
    """Record the checkpoints one worker sees, the broken ones too."""
    entries = [vars(asset) for asset in assets]
    with db.connection() as connection:
        connection.execute(_REGISTER, {"kind": CHECKPOINT, "assets": Jsonb(entries)})


def listing(db: Database) -> list[Asset]:
    return [Asset(**row) for row in db.all(_LISTING, {"kind": CHECKPOINT})]


def defaults(db: Database) -> dict[str, dict[str, Any]]:
    """Default job fields by name of each usable checkpoint."""
    return {asset.name: asset.defaults for asset in listing(db) if asset.error is None}

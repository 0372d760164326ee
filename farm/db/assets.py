"""Assets: the model files that workers say they can load, host by host."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from psycopg.types.json import Jsonb

from farm.db.database import Database

CHECKPOINT, UPSCALER = "checkpoint", "upscaler"


@dataclass(frozen=True)
class Asset:
    """One file on one host; ``error`` says why it cannot be used.

    Attributes:
        identity: what tells the file from its replacement; None where there is nothing to hash.
    """

    name: str
    family: str | None
    bytes: int
    path: str
    defaults: dict[str, Any]
    error: str | None
    kind: str = CHECKPOINT
    dtype: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    identity: str | None = None


@dataclass(frozen=True)
class Known:
    """An asset as the farm knows it, whatever hosts have it.

    Attributes:
        sha256: of the file; None until a worker has found the time to hash it.
        weights_sha256: of a LoRA's weights alone, as kohya's trainer and Civitai count it.
        hosts: how many have it.
        differs: whether two hosts have different files by this name.
    """

    kind: str
    name: str
    family: str | None
    dtype: str | None
    bytes: int
    defaults: dict[str, Any]
    metadata: dict[str, str]
    error: str | None
    sha256: str | None
    weights_sha256: str | None
    hosts: int
    differs: bool | None


@dataclass(frozen=True)
class Size:
    """How large a checkpoint's file is."""

    family: str
    dtype: str | None
    bytes: int


@dataclass(frozen=True)
class Unhashed:
    """A file that this worker is to hash."""

    path: str
    kind: str
    identity: str


_REGISTER = """
INSERT INTO asset_files AS a (
    host, path, kind, name, family, dtype, bytes, defaults, metadata, error, identity)
SELECT %(host)s, path, kind, name, family, dtype, bytes, defaults, metadata, error, identity
FROM jsonb_to_recordset(%(assets)s) AS e (
    path text, kind text, name text, family text, dtype text, bytes bigint, defaults jsonb,
    metadata jsonb, error text, identity text)
ORDER BY path
ON CONFLICT (host, path) DO UPDATE
SET kind = excluded.kind, name = excluded.name, family = excluded.family,
    dtype = excluded.dtype, bytes = excluded.bytes, defaults = excluded.defaults,
    metadata = excluded.metadata, error = excluded.error, identity = excluded.identity,
    sha256 = CASE WHEN a.identity = excluded.identity THEN a.sha256 END,
    weights_sha256 = CASE WHEN a.identity = excluded.identity THEN a.weights_sha256 END,
    hashing_until = CASE WHEN a.identity = excluded.identity THEN a.hashing_until END,
    seen_at = now()
"""

_FORGET = """
DELETE FROM asset_files a
WHERE host = %(host)s AND NOT path = ANY (%(paths)s)
  AND EXISTS (SELECT FROM unnest(%(folders)s::text[]) folder
              WHERE starts_with(a.path, folder || '/'))
"""

# A folder that many hosts mount is hashed once: the same path, size, mtime and inode elsewhere
# is the same file.
_BORROW = """
UPDATE asset_files a SET sha256 = b.sha256, weights_sha256 = b.weights_sha256
FROM asset_files b
WHERE a.host = %(host)s AND a.sha256 IS NULL AND a.identity IS NOT NULL
  AND b.path = a.path AND b.identity = a.identity AND b.sha256 IS NOT NULL
"""

_TAKE = """
UPDATE asset_files SET hashing_until = now() + make_interval(mins => 10)
WHERE (host, path) = (
    SELECT host, path FROM asset_files
    WHERE host = %(host)s AND sha256 IS NULL AND identity IS NOT NULL AND error IS NULL
      AND (hashing_until IS NULL OR hashing_until < now())
    ORDER BY bytes, path LIMIT 1
    FOR UPDATE SKIP LOCKED)
RETURNING path, kind, identity
"""

_HASHED = """
UPDATE asset_files
SET sha256 = %(sha256)s, weights_sha256 = %(weights_sha256)s, hashing_until = NULL
WHERE host = %(host)s AND path = %(path)s AND identity = %(identity)s
"""

_KNOWN = """
SELECT kind, name, family, dtype, bytes, defaults, metadata, error, sha256, weights_sha256,
       hosts, differs
FROM assets
"""


def register(
    db: Database, host: str, assets: Iterable[Asset], *, folders: Sequence[str] = ()
) -> None:
    """Record what ``host`` has, the broken files too; forget what is gone from ``folders``.

    The hashes of files that have not changed stay.
    """
    entries = [vars(asset) for asset in assets]
    values = {
        "host": host,
        "assets": Jsonb(entries),
        "paths": [entry["path"] for entry in entries],
        "folders": list(folders),
    }
    with db.connection() as connection:
        for statement in (_FORGET, _REGISTER, _BORROW):
            connection.execute(statement, values)


def listing(db: Database, kind: str | None = None) -> list[Known]:
    """Every asset that some host has, or those of one kind, by kind and name."""
    rows = db.all(
        f"{_KNOWN} WHERE %(kind)s::text IS NULL OR kind = %(kind)s ORDER BY kind, name",
        {"kind": kind},
    )
    return [Known(**row) for row in rows]


def get(db: Database, kind: str, name: str) -> Known | None:
    """The asset of that kind and name."""
    row = db.one(
        f"{_KNOWN} WHERE kind = %(kind)s AND name = %(name)s", {"kind": kind, "name": name}
    )
    return Known(**row) if row else None


def files(db: Database, kind: str, name: str) -> list[dict[str, Any]]:
    """Where the asset lies: host, size, hash and error of each file of that name."""
    return db.all(
        """SELECT host, bytes, sha256, error, seen_at FROM asset_files
           WHERE kind = %(kind)s AND name = %(name)s ORDER BY host, path""",
        {"kind": kind, "name": name},
    )


def defaults(db: Database) -> dict[str, dict[str, Any]]:
    """Default job fields by name of each usable checkpoint."""
    rows = db.all(
        """SELECT DISTINCT ON (name) name, defaults FROM asset_files
           WHERE kind = %(kind)s AND error IS NULL
           ORDER BY name, seen_at DESC, host, path""",
        {"kind": CHECKPOINT},
    )
    return {row["name"]: row["defaults"] for row in rows}


def sizes(db: Database) -> dict[str, Size]:
    """How large each usable checkpoint is, by name."""
    rows = db.all(
        """SELECT DISTINCT ON (name) name, family, dtype, bytes FROM asset_files
           WHERE kind = %(kind)s AND error IS NULL AND family IS NOT NULL
           ORDER BY name, seen_at DESC, host, path""",
        {"kind": CHECKPOINT},
    )
    return {row["name"]: Size(row["family"], row["dtype"], row["bytes"]) for row in rows}


def families(db: Database) -> Callable[[str], str | None]:
    """The family of each usable checkpoint by name, read when it is first asked for."""
    known = cache(partial(sizes, db))

    def family(name: str) -> str | None:
        size = known().get(name)
        return size.family if size else None

    return family


def forget_hosts(db: Database, *, days: float) -> int:
    """Forget the files of hosts that have had no worker for so long; how many."""
    with db.connection() as connection:
        return connection.execute(
            """DELETE FROM asset_files
               WHERE seen_at < now() - make_interval(secs => %s * 86400)
                 AND host NOT IN (SELECT host FROM sessions WHERE ended_at IS NULL)""",
            (days,),
        ).rowcount


def hashes(db: Database, host: str) -> dict[str, str]:
    """Path to ``sha256`` of the files of ``host`` that were hashed; a LoRA's of its weights."""
    rows = db.all(
        """SELECT path, coalesce(weights_sha256, sha256) AS sha256 FROM asset_files
           WHERE host = %(host)s AND sha256 IS NOT NULL""",
        {"host": host},
    )
    return {row["path"]: row["sha256"] for row in rows}


def take_unhashed(db: Database, host: str) -> Unhashed | None:
    """A file of ``host`` to hash, the smallest first; no other worker gets it meanwhile."""
    row = db.one(_TAKE, {"host": host})
    return Unhashed(**row) if row else None


def record_hashes(
    db: Database, host: str, file: Unhashed, *, sha256: str, weights_sha256: str | None
) -> None:
    """Keep what a file hashed to; nothing happens if it was replaced since."""
    values = {**vars(file), "host": host, "sha256": sha256, "weights_sha256": weights_sha256}
    with db.connection() as connection:
        connection.execute(_HASHED, values)

"""Retention: what is kept, what goes, in slices that hold no transaction for long.

Nothing is partitioned. All rows of a batch stand together in the tables that only grow, and go with
it, in the order in which they came: Postgres gives their pages to new rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from farm.db.database import Database

_TABLES = ("images", "attempts", "outcomes", "inputs", "batch_progress")
"""With rows of a batch that go with it. What its seconds were spent on stays in the books."""


class Ended(NamedTuple):
    """A batch that has ended, or never came to be."""

    id: int
    created_at: datetime
    ended_at: datetime | None


class Attempted(NamedTuple):
    """A stored file by its name: whose attempt made it."""

    ord: int
    attempt: int
    path: str


@dataclass(frozen=True)
class Old:
    """What pruning would remove."""

    batches: int
    jobs: int
    images: int
    bytes: int


_OLD = """
state IN ('done', 'cancelled') AND NOT keep
AND ended_at < now() - make_interval(secs => %(days)s * 86400)
"""

_COUNT = f"""
SELECT count(*) AS batches, coalesce(sum(b.total), 0)::bigint AS jobs,
       coalesce(sum(i.images), 0)::bigint AS images, coalesce(sum(i.bytes), 0)::bigint AS bytes
FROM (SELECT * FROM batches WHERE {_OLD}) b
CROSS JOIN LATERAL (SELECT count(*) AS images, sum(bytes) AS bytes
                    FROM images WHERE batch_id = b.id) i
"""

# Its key is free again: whoever repeats the request gets a new batch, not one that is going.
_MARK = f"""
UPDATE batches SET state = 'pruned', idempotency_key = NULL
WHERE id IN (SELECT id FROM batches WHERE {_OLD} ORDER BY ended_at LIMIT %(limit)s FOR UPDATE)
RETURNING id
"""

_GIVE_UP = """
UPDATE batches SET state = 'pruned', ended_at = now()
WHERE state = 'loading' AND loading_until < now()
"""

# Most files have a row: those are found by its key. A lease may still get one.
_UNNAMED = """
SELECT f.path
FROM unnest(%(ords)s::bigint[], %(attempts)s::int[], %(paths)s::text[]) AS f (ord, attempt, path)
WHERE NOT EXISTS (SELECT FROM images i WHERE i.batch_id = %(batch_id)s AND i.ord = f.ord
                  AND f.path IN (i.path, i.thumb_path))
  AND NOT EXISTS (SELECT FROM leases l WHERE l.batch_id = %(batch_id)s AND l.ord = f.ord
                  AND l.attempt = f.attempt)
"""


def old(db: Database, *, days: float) -> Old:
    """What batches that ended so long ago hold, those to be kept left out."""
    row = db.one(_COUNT, {"days": days})
    assert row is not None
    return Old(**row)


def prune(db: Database, *, days: float, limit: int) -> int:
    """Hide up to ``limit`` batches that ended so long ago, for :func:`erase`; how many."""
    return len(db.all(_MARK, {"days": days, "limit": limit}))


def set_keep(db: Database, batch_id: int, keep: bool) -> None:
    """Never prune a batch, however old; or do."""
    with db.connection() as connection:
        connection.execute("UPDATE batches SET keep = %s WHERE id = %s", (keep, batch_id))


def give_up_loading(db: Database) -> int:
    """Hide batches whose upload has died; how many."""
    with db.connection() as connection:
        return connection.execute(_GIVE_UP).rowcount


def hidden(db: Database) -> Ended | None:
    """A batch that is to be erased."""
    row = db.one(
        "SELECT id, created_at, ended_at FROM batches WHERE state = 'pruned' ORDER BY id LIMIT 1"
    )
    return Ended(**row) if row else None


def erase(db: Database, batch_id: int, *, limit: int) -> bool:
    """Remove up to ``limit`` rows of a hidden batch; whether there may be more."""
    left = False
    for table in _TABLES:
        with db.connection() as connection:
            gone = connection.execute(
                f"""DELETE FROM {table} WHERE ctid = ANY (ARRAY(
                        SELECT t.ctid FROM {table} t JOIN batches b ON b.id = t.batch_id
                        WHERE t.batch_id = %s AND b.state = 'pruned' LIMIT %s))""",
                (batch_id, limit),
            ).rowcount
        left |= gone == limit
    return left


def bury(db: Database, batch_id: int) -> None:
    """Remove a hidden batch of which nothing else is left."""
    with db.connection() as connection:
        connection.execute("DELETE FROM batches WHERE id = %s AND state = 'pruned'", (batch_id,))


def unswept(db: Database, *, seconds: float) -> Ended | None:
    """A batch that ended so long ago and whose files nobody has looked through since."""
    row = db.one(
        """SELECT id, created_at, ended_at FROM batches
           WHERE ended_at < now() - make_interval(secs => %(seconds)s) AND swept_at IS NULL
             AND state <> 'pruned'
           ORDER BY ended_at LIMIT 1""",
        {"seconds": seconds},
    )
    return Ended(**row) if row else None


def unnamed(db: Database, batch_id: int, files: Sequence[Attempted]) -> list[str]:
    """Those of the files that no image names and no attempt in flight can still make one."""
    ords, attempts, paths = zip(*files, strict=True) if files else ((), (), ())
    rows = db.all(
        _UNNAMED,
        {
            "batch_id": batch_id,
            "ords": list(ords),
            "attempts": list(attempts),
            "paths": list(paths),
        },
    )
    return [row["path"] for row in rows]


def swept(db: Database, batch_id: int) -> None:
    """Its files have been looked through; nothing happens if it was opened again meanwhile."""
    with db.connection() as connection:
        connection.execute(
            "UPDATE batches SET swept_at = now() WHERE id = %s AND ended_at IS NOT NULL",
            (batch_id,),
        )


def trim(db: Database, *, days: float, limit: int) -> bool:
    """Forget up to ``limit`` attempts of a batch that ended so long ago; whether there was one."""
    row = db.one(
        """SELECT id FROM batches
           WHERE ended_at < now() - make_interval(secs => %(days)s * 86400)
             AND trimmed_at IS NULL
           ORDER BY ended_at LIMIT 1""",
        {"days": days},
    )
    if row is None:
        return False
    with db.connection() as connection:
        gone = connection.execute(
            """DELETE FROM attempts WHERE ctid = ANY (ARRAY(
                   SELECT ctid FROM attempts WHERE batch_id = %s LIMIT %s))""",
            (row["id"], limit),
        ).rowcount
        if gone < limit:
            connection.execute(
                "UPDATE batches SET trimmed_at = now() WHERE id = %s AND ended_at IS NOT NULL",
                (row["id"],),
            )
    return True


def forget_sessions(db: Database, *, days: float, limit: int) -> int:
    """Forget up to ``limit`` sessions and quarantines that ended so long ago; how many."""
    values = {"days": days, "limit": limit}
    with db.connection() as connection:
        gone = connection.execute(
            """DELETE FROM sessions WHERE id = ANY (ARRAY(
                   SELECT id FROM sessions
                   WHERE ended_at < now() - make_interval(secs => %(days)s * 86400)
                     AND id NOT IN (SELECT session_id FROM leases)
                   ORDER BY ended_at LIMIT %(limit)s))""",
            values,
        ).rowcount
        connection.execute(
            """DELETE FROM quarantines
               WHERE ended_at < now() - make_interval(secs => %(days)s * 86400)""",
            values,
        )
    return gone


def alive(db: Database) -> set[str]:
    """The sessions that have not ended."""
    return {row["id"] for row in db.all("SELECT id FROM sessions WHERE ended_at IS NULL")}

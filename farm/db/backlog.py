"""What waits: the open batches and the jobs to retry, as the dispatcher reads them each cycle."""

from __future__ import annotations

from dataclasses import dataclass

from farm.db import queries
from farm.db.database import Database


@dataclass(frozen=True)
class OpenBatch:
    """A batch with jobs past its cursor; ``waited`` is its age in seconds."""

    id: int
    priority: int
    cursor: int
    total: int
    waited: float


@dataclass(frozen=True)
class Retry:
    """A job that may be tried again now."""

    batch_id: int
    ord: int
    priority: int
    crashes: int
    avoid: str | None
    waited: float


_OPEN = """
SELECT id, priority, cursor, total, extract(epoch FROM now() - created_at)::float AS waited
FROM batches WHERE ended_at IS NULL AND state = 'open' AND cursor < total
ORDER BY priority DESC, id LIMIT %(limit)s
"""

_RETRIES = """
SELECT r.batch_id, r.ord, b.priority, r.crashes, r.avoid,
       extract(epoch FROM now() - b.created_at)::float AS waited
FROM requeue r JOIN batches b ON b.id = r.batch_id
WHERE r.not_before <= now() AND b.state = 'open'
ORDER BY b.priority DESC, r.batch_id, r.ord LIMIT %(limit)s
"""


def open_batches(db: Database, *, limit: int) -> list[OpenBatch]:
    """Open batches with unclaimed jobs, highest priority first, then oldest."""
    return [OpenBatch(**row) for row in db.all(_OPEN, {"limit": limit})]


def retries(db: Database, *, limit: int) -> list[Retry]:
    """Jobs whose time to be retried has come."""
    return [Retry(**row) for row in db.all(_RETRIES, {"limit": limit})]


def suspects(db: Database, *, crashes: int) -> set[str]:
    """Sessions that hold a job which is to run alone."""
    rows = db.all(
        "SELECT DISTINCT session_id FROM leases WHERE crashes >= %(crashes)s",
        {"crashes": crashes},
    )
    return {row["session_id"] for row in rows}


def finish(db: Database) -> list[int]:
    """Close the batches that have nothing left to do; their ids."""
    with db.connection() as connection:
        connection.execute(queries.STOP_WAITING)
        return [row["id"] for row in connection.execute(queries.FINISH)]

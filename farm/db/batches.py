"""Batches: accepting, listing, counting, cancelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from farm.db import forecasts, inputs, queries, quotas, stats
from farm.db.database import Connection, Database
from farm.errors import Conflict
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.output import PNG, Output


@dataclass(frozen=True)
class NewBatch:
    """A validated batch to accept: either ``spec`` or listed ``jobs``."""

    user_id: int
    spec: BatchSpec | None = None
    jobs: Sequence[JobSpec] | None = None
    name: str = ""
    priority: int = 50
    idempotency_key: str | None = None
    request_hash: bytes | None = None
    tags: Sequence[str] = ()
    output: Output = PNG


@dataclass(frozen=True)
class Accepted:
    id: int
    created: bool


@dataclass(frozen=True)
class Batch:
    """A batch with its counts; ``spec`` is None when its jobs are listed."""

    id: int
    name: str
    user: str
    state: str
    priority: int
    tags: list[str]
    output: Output
    keep: bool
    total: int
    counts: dict[str, int]
    spec: dict[str, Any] | None
    created_at: datetime
    ended_at: datetime | None

    @property
    def explicit(self) -> bool:
        return self.spec is None


_INSERT = """
INSERT INTO batches (user_id, name, priority, tags, output, total, spec, idempotency_key,
                     request_hash)
VALUES (%(user_id)s, %(name)s, %(priority)s, %(tags)s, %(output)s, %(total)s, %(spec)s, %(key)s,
        %(hash)s)
ON CONFLICT (user_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id
"""

_SELECT = """
SELECT b.id, b.name, u.name AS user, b.state, b.priority, b.tags, b.output, b.keep, b.total,
       b.spec, b.created_at, b.ended_at, coalesce(p.succeeded, 0)::bigint AS succeeded,
       coalesce(p.failed, 0)::bigint AS failed, coalesce(p.cancelled, 0)::bigint AS cancelled,
       l.running, l.assigned
FROM batches b
JOIN users u ON u.id = b.user_id
CROSS JOIN LATERAL (
    SELECT sum(succeeded) AS succeeded, sum(failed) AS failed, sum(cancelled) AS cancelled
    FROM batch_progress WHERE batch_id = b.id) p
CROSS JOIN LATERAL (
    SELECT count(started_at) AS running, count(*) - count(started_at) AS assigned
    FROM leases WHERE batch_id = b.id) l
"""

# Hidden are batches that are not whole: still being loaded, or being pruned.
_SEEN = "b.state NOT IN ('loading', 'pruned')"

_PAGE = _SELECT + f"WHERE b.id < %(before)s AND {_SEEN} ORDER BY b.id DESC LIMIT %(limit)s"

_ONE = _SELECT + f"WHERE b.id = %(batch_id)s AND {_SEEN}"

STAGES = ("queue", "load", "encode", "denoise", "decode", "store")
"""The stages of an attempt; each is timed in seconds under ``<stage>_seconds``."""

_SUMMARY = f"""
SELECT count(*) AS images,
       extract(epoch FROM max(a.ended_at) - min(a.started_at))::float AS seconds,
       sum(a.gpu_seconds::float) AS gpu_seconds,
       avg({stats.speed("a")}) AS iterations_per_second,
       avg(a.mean_rows) AS mean_rows,
       max(a.vram_active) AS vram_active,
       max(a.vram_reserved) AS vram_reserved,
       max(a.system_used) AS system_used,
       max(a.system_total) AS system_total,
       {", ".join(f"avg(a.{stage}_seconds) AS {stage}_seconds" for stage in STAGES)}
FROM attempts a
WHERE a.batch_id = %(batch_id)s AND a.result = 'succeeded'
"""

_WORKERS = """
SELECT worker, count(*) AS images, sum(gpu_seconds::float) AS gpu_seconds
FROM attempts WHERE batch_id = %(batch_id)s AND result = 'succeeded'
GROUP BY worker ORDER BY worker
"""


def accept(db: Database, batch: NewBatch, *, quota: int | None = None) -> Accepted:
    """Store a batch, all of it or nothing, and wake the dispatcher.

    Args:
        quota: most jobs of a user that may wait, where nothing else was said of this one; None to
            count none.

    Raises:
        Conflict: the idempotency key was used before with another request.
        QuotaExceeded: more of the user's jobs would wait.
    """
    total = batch.spec.total if batch.spec else len(batch.jobs or ())
    values = {
        "user_id": batch.user_id,
        "name": batch.name,
        "priority": batch.priority,
        "tags": list(batch.tags),
        "output": Jsonb(batch.output.model_dump()),
        "total": total,
        "spec": Jsonb(batch.spec.stored()) if batch.spec else None,
        "key": batch.idempotency_key,
        "hash": batch.request_hash,
    }
    with db.connection() as connection:
        row = connection.execute(_INSERT, values).fetchone()
        if row is None:
            return accepted_before(connection, batch)
        if batch.jobs:
            inputs.store(connection, row["id"], batch.jobs)
        # At the end: others of this user wait from here on.
        if quota is not None:
            quotas.check(connection, batch.user_id, most=quota, added=total)
        connection.execute(queries.WAKE)
    return Accepted(row["id"], created=True)


def fetch(db: Database, batch_id: int) -> Batch | None:
    row = db.one(_ONE, {"batch_id": batch_id})
    return _batch(row) if row else None


def page(db: Database, *, limit: int, before: int | None = None) -> list[Batch]:
    """Batches newest first, starting below ``before``."""
    rows = db.all(_PAGE, {"limit": limit, "before": before if before is not None else 2**62})
    return [_batch(row) for row in rows]


def cancel(db: Database, batch_id: int) -> Batch | None:
    """Cancel what has not ended; running jobs stop at their next step. Doing it twice is fine."""
    values = {"batch_id": batch_id}
    with db.connection() as connection:
        connection.execute(queries.HOLD, values)
        if connection.execute(queries.CANCEL, values).fetchone():
            connection.execute(queries.WAKE)
    with db.connection() as connection:
        connection.execute(queries.FLAG, values)
    return fetch(db, batch_id)


def pause(db: Database, batch_id: int) -> Batch | None:
    """Place no more of its jobs; those in flight go on. Doing it twice is fine."""
    forecasts.void(db, batch_id)
    return _move(db, batch_id, "open", "paused")


def resume(db: Database, batch_id: int) -> Batch | None:
    """Undo :func:`pause`."""
    return _move(db, batch_id, "paused", "open")


def set_priority(db: Database, batch_id: int, priority: int) -> Batch | None:
    """Change how important a batch is, for the jobs that are not placed yet."""
    forecasts.void(db, batch_id)
    with db.connection() as connection:
        connection.execute(
            "UPDATE batches SET priority = %s WHERE id = %s AND ended_at IS NULL",
            (priority, batch_id),
        )
        connection.execute(queries.WAKE)
    return fetch(db, batch_id)


def _move(db: Database, batch_id: int, before: str, after: str) -> Batch | None:
    with db.connection() as connection:
        connection.execute(
            "UPDATE batches SET state = %s WHERE id = %s AND state = %s AND ended_at IS NULL",
            (after, batch_id, before),
        )
        connection.execute(queries.WAKE)
    return fetch(db, batch_id)


def specification(db: Database, batch_id: int) -> BatchSpec | None:
    """The template and axes of a batch; None when its jobs are listed or it does not exist."""
    row = db.one("SELECT spec FROM batches WHERE id = %(id)s", {"id": batch_id})
    return BatchSpec.restored(row["spec"]) if row and row["spec"] else None


def output(db: Database, batch_id: int) -> Output:
    """How the images of a batch become files; of one that does not exist, as by default."""
    row = db.one("SELECT output FROM batches WHERE id = %(id)s", {"id": batch_id})
    return Output.model_validate(row["output"]) if row else PNG


def summary(db: Database, batch_id: int) -> dict[str, Any]:
    """What the images of a batch took: throughput, seconds by stage, memory, images by worker."""
    values = {"batch_id": batch_id}
    totals = db.one(_SUMMARY, values) or {}
    seconds, images = totals.get("seconds"), totals.get("images", 0)
    return {
        **totals,
        "images_per_minute": 60.0 * images / seconds if seconds else None,
        "workers": db.all(_WORKERS, values),
    }


def accepted_before(connection: Connection, batch: NewBatch) -> Accepted:
    """The batch by the idempotency key of this one; Conflict if that was another request."""
    row = connection.execute(
        "SELECT id, request_hash FROM batches WHERE user_id = %s AND idempotency_key = %s",
        (batch.user_id, batch.idempotency_key),
    ).fetchone()
    if row is None or row["request_hash"] != batch.request_hash:
        raise Conflict(
            f"Idempotency-Key {batch.idempotency_key!r} was used with another request.",
            field="Idempotency-Key",
            value=batch.idempotency_key,
            remedy="Use a new key for a new batch; reuse a key only to repeat the same request.",
        )
    return Accepted(row["id"], created=False)


def _batch(row: DictRow) -> Batch:
    ended = row["succeeded"] + row["failed"]
    rest = row["total"] - ended - row["running"]
    unwanted = rest - row["assigned"] if row["state"] == "cancelled" else row["cancelled"]
    counts = {
        "pending": rest - unwanted,
        "running": row["running"],
        "succeeded": row["succeeded"],
        "failed": row["failed"],
        "cancelled": unwanted,
    }
    return Batch(
        id=row["id"],
        name=row["name"],
        user=row["user"],
        state=_state(row["state"], counts),
        priority=row["priority"],
        tags=row["tags"],
        output=Output.model_validate(row["output"]),
        keep=row["keep"],
        total=row["total"],
        counts=counts,
        spec=row["spec"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
    )


def _state(stored: str, counts: dict[str, int]) -> str:
    if stored == "cancelled":
        return "cancelled"
    if not counts["pending"] and not counts["running"]:
        return "done"
    if stored == "paused":
        return "paused"
    started = counts["running"] or counts["succeeded"] or counts["failed"]
    return "running" if started else "pending"

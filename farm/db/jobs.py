"""Jobs as people see them: specification, state, image, attempts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import DictRow

from farm.db import batches, images, stats
from farm.db.database import Database
from farm.db.spans import UNCLAIMED
from farm.spec.batch import BatchSpec
from farm.spec.hires import SIZE_FIELDS
from farm.spec.job import JobSpec
from farm.spec.moves import ENDED


@dataclass(frozen=True)
class Job:
    """One job; ``stats`` and times are those of its last attempt that ended.

    ``error`` is why it failed, or why a waiting job is to be tried again.
    """

    batch_id: int
    ord: int
    state: str
    attempt: int
    spec: JobSpec
    image: images.Image | None
    error: dict[str, Any] | None
    worker: str | None
    started_at: datetime | None
    ended_at: datetime | None
    stats: dict[str, Any] | None


@dataclass(frozen=True)
class JobDetail:
    job: Job
    attempts: list[dict[str, Any]]


_SELECT = f"""
SELECT g.ord,
       CASE WHEN o.state IS NOT NULL THEN o.state
            WHEN l.started_at IS NOT NULL THEN 'running'
            WHEN l.batch_id IS NOT NULL THEN 'assigned'
            WHEN b.state = 'cancelled' THEN 'cancelled'
            WHEN r.batch_id IS NOT NULL THEN 'waiting'
            ELSE 'pending' END AS state,
       coalesce(o.attempt, l.attempt, r.attempt, 0) AS attempt,
       coalesce(o.error, CASE WHEN r.batch_id IS NOT NULL THEN
           jsonb_build_object('title', 'Will be tried again', 'detail', r.reason) END) AS error,
       CASE WHEN t.attempt IS NOT NULL THEN {stats.told("t")} END AS stats,
       coalesce(s.worker, t.worker) AS worker, {images.selected("i", "image_")}, n.spec,
       coalesce(l.started_at, t.started_at) AS started_at, o.ended_at
FROM batches b
CROSS JOIN LATERAL ({{ords}}) AS g (ord)
LEFT JOIN outcomes o ON o.batch_id = b.id AND o.ord = g.ord
LEFT JOIN leases l ON l.batch_id = b.id AND l.ord = g.ord
LEFT JOIN sessions s ON s.id = l.session_id
LEFT JOIN requeue r ON r.batch_id = b.id AND r.ord = g.ord
LEFT JOIN attempts t ON t.batch_id = b.id AND t.ord = g.ord AND t.attempt = o.attempt
LEFT JOIN images i ON i.batch_id = b.id AND i.ord = g.ord
LEFT JOIN inputs n ON n.batch_id = b.id AND n.ord = g.ord
WHERE b.id = %(batch_id)s AND b.state NOT IN ('loading', 'pruned')
ORDER BY g.ord
"""

# Each way to pick job numbers touches few rows beside those it gives, however large the batch
# is: generate_series streams in a select list, but is built whole in a FROM clause.
_ALL = "SELECT generate_series(%(first)s::bigint, least(%(first)s + %(limit)s, b.total) - 1)"
_BY_STATE = {
    "running": """SELECT ord FROM leases WHERE batch_id = b.id AND ord >= %(first)s
                  AND started_at IS NOT NULL ORDER BY ord LIMIT %(limit)s""",
    "assigned": """SELECT ord FROM leases WHERE batch_id = b.id AND ord >= %(first)s
                   AND started_at IS NULL ORDER BY ord LIMIT %(limit)s""",
    "waiting": """SELECT ord FROM requeue WHERE batch_id = b.id AND ord >= %(first)s
                  AND b.state <> 'cancelled' ORDER BY ord LIMIT %(limit)s""",
    "pending": f"""SELECT g FROM (SELECT generate_series(greatest(%(first)s, lower(s)),
                       CASE WHEN b.state <> 'cancelled' THEN upper(s) END - 1) AS g
                       FROM (SELECT s FROM unnest({UNCLAIMED}) AS s ORDER BY s) AS s) AS s
                   WHERE NOT EXISTS (SELECT FROM outcomes WHERE batch_id = b.id AND ord = g)
                   LIMIT %(limit)s""",
    "cancelled": """(SELECT ord FROM outcomes WHERE batch_id = b.id AND ord >= %(first)s
                        AND state = 'cancelled' AND b.state <> 'cancelled'
                     ORDER BY ord LIMIT %(limit)s)
                    UNION ALL
                    (SELECT g FROM (SELECT generate_series(%(first)s::bigint,
                        CASE WHEN b.state = 'cancelled' THEN b.total END - 1) AS g) AS s
                     WHERE NOT EXISTS (SELECT FROM leases WHERE batch_id = b.id AND ord = g)
                       AND NOT EXISTS (SELECT FROM outcomes WHERE batch_id = b.id AND ord = g
                                       AND state <> 'cancelled')
                     LIMIT %(limit)s)""",
    **{
        state: f"""SELECT ord FROM outcomes WHERE batch_id = b.id AND ord >= %(first)s
                   AND state = '{state}' ORDER BY ord LIMIT %(limit)s"""
        for state in ("succeeded", "failed")
    },
}
STATES = tuple(_BY_STATE)

_ATTEMPTS = f"""
SELECT attempt, worker, result, error, {stats.told("a")} AS stats, assigned_at, started_at, ended_at
FROM attempts a WHERE batch_id = %(batch_id)s AND ord = %(ord)s ORDER BY attempt
"""


def page(
    db: Database, batch_id: int, *, limit: int, after: int = -1, state: str | None = None
) -> list[Job]:
    """Jobs of a batch in order, past number ``after``, optionally of one state of STATES."""
    ords = _BY_STATE[state] if state else _ALL
    values = {"batch_id": batch_id, "first": after + 1, "limit": limit}
    rows = db.all(_SELECT.format(ords=ords), values)
    spec = batches.specification(db, batch_id) if rows else None
    return [_job(batch_id, row, spec) for row in rows]


def fetch(db: Database, batch_id: int, ord: int) -> JobDetail | None:
    """One job with every attempt that ended."""
    found = page(db, batch_id, limit=1, after=ord - 1) if ord >= 0 else []
    if not found:
        return None
    return JobDetail(found[0], db.all(_ATTEMPTS, {"batch_id": batch_id, "ord": ord}))


def specification(db: Database, batch_id: int, ord: int) -> JobSpec | None:
    """The specification of a listed job."""
    row = db.one(
        "SELECT spec FROM inputs WHERE batch_id = %(batch_id)s AND ord = %(ord)s",
        {"batch_id": batch_id, "ord": ord},
    )
    return JobSpec.model_validate(row["spec"]) if row else None


def _job(batch_id: int, row: DictRow, spec: BatchSpec | None) -> Job:
    return Job(
        batch_id=batch_id,
        ord=row["ord"],
        state=row["state"],
        attempt=row["attempt"],
        spec=spec.job(row["ord"]) if spec else JobSpec.model_validate(row["spec"]),
        image=images.from_row(row, "image_"),
        error=row["error"],
        worker=row["worker"],
        started_at=row["started_at"],
        ended_at=row["ended_at"] if row["state"] in ENDED else None,
        stats=row["stats"],
    )


_RUN = """
WITH next AS (
    SELECT ord, spec, jsonb_build_array(spec -> 'checkpoint', spec -> 'hires_checkpoint',
                                        spec -> 'hires_upscaler') AS files
    FROM inputs WHERE batch_id = %(batch_id)s AND ord >= %(ord)s ORDER BY ord LIMIT 64
), other AS (
    SELECT min(ord) AS ord FROM next
    WHERE files <> (SELECT files FROM next WHERE ord = %(ord)s)
)
SELECT ord, spec FROM next WHERE ord < coalesce((SELECT ord FROM other), ord + 1) ORDER BY ord
"""


def checkpoint_run(db: Database, batch_id: int, ord: int) -> tuple[dict[int, JobSpec], int]:
    """A listed job, the first ones of other sizes up to the next that needs other files, all by
    number, and the number of that."""
    rows = db.all(_RUN, {"batch_id": batch_id, "ord": ord})
    if not rows or rows[0]["ord"] != ord:
        raise LookupError(f"batch {batch_id} lists no job {ord}")
    sizes: dict[tuple[Any, ...], DictRow] = {}
    for row in rows:
        sizes.setdefault(tuple(row["spec"].get(field) for field in SIZE_FIELDS), row)
    found = {row["ord"]: JobSpec.model_validate(row["spec"]) for row in sizes.values()}
    return found, rows[-1]["ord"] + 1


def listed(db: Database, batch_id: int, ords: Iterable[int]) -> list[tuple[int, JobSpec]]:
    """Those of the listed jobs of a batch that have these numbers, in order."""
    rows = db.all(
        """SELECT ord, spec FROM inputs
           WHERE batch_id = %(batch_id)s AND ord = ANY(%(ords)s) ORDER BY ord""",
        {"batch_id": batch_id, "ords": list(ords)},
    )
    return [(row["ord"], JobSpec.model_validate(row["spec"])) for row in rows]

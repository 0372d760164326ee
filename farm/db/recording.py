"""What came in of late, on what, and what it took: the raw material of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from farm.db.database import Database

MANY = 200_000
"""Attempts that are looked at for what jobs take."""

_WORKERS = """
SELECT DISTINCT ON (worker, host) worker, device, capacity, fits
FROM sessions
WHERE ended_at IS NULL OR ended_at > now() - make_interval(secs => %(days)s * 86400)
ORDER BY worker, host, started_at DESC
"""

_TAKEN = """
SELECT coalesce(s.device ->> 'name', '') AS card, a.checkpoint, a.units::float AS units,
       a.gpu_seconds::float AS seconds, coalesce(a.load_seconds::float, 0) AS load
FROM attempts a JOIN sessions s ON s.id = a.session_id
WHERE a.ended_at > now() - make_interval(secs => %(days)s * 86400) AND a.result = 'succeeded'
  AND a.units > 0 AND a.gpu_seconds > 0
ORDER BY a.ended_at LIMIT %(many)s
"""

_BATCHES = """
SELECT b.id, b.user_id, b.priority, extract(epoch FROM b.created_at)::float AS at,
       p.checkpoint, p.jobs, p.size
FROM batches b
JOIN (SELECT batch_id, checkpoint, count(*) AS jobs, min(ord) AS first, avg(units) AS size
      FROM attempts
      WHERE result = 'succeeded' AND units > 0
        AND ended_at > now() - make_interval(secs => %(days)s * 86400)
      GROUP BY batch_id, checkpoint) p ON p.batch_id = b.id
WHERE b.created_at > now() - make_interval(secs => %(days)s * 86400)
ORDER BY b.created_at, b.id, p.first
"""

_USERS = "SELECT id, weight::float AS weight, max_in_flight FROM users ORDER BY id"

_SIZES = """
SELECT name, max(bytes) AS bytes FROM asset_files WHERE kind = 'checkpoint' GROUP BY name
"""


@dataclass(frozen=True)
class Recording:
    """Rows as they lie in Postgres, of the last days.

    Attributes:
        workers: worker, device, capacity, fits.
        taken: card, checkpoint, units, seconds and load of attempts, the oldest first.
        batches: id, user_id, priority, at, checkpoint, jobs, size; a row for each checkpoint of a
            batch, in the order of its jobs.
        users: id, weight, max_in_flight.
        sizes: bytes of each checkpoint's file.
    """

    workers: list[dict[str, Any]]
    taken: list[dict[str, Any]]
    batches: list[dict[str, Any]]
    users: list[dict[str, Any]]
    sizes: dict[str, int]


def record(db: Database, *, days: float) -> Recording:
    """What the farm did in the last days. Only batches that came in them count."""
    values = {"days": days, "many": MANY}
    return Recording(
        workers=db.all(_WORKERS, values),
        taken=db.all(_TAKEN, values),
        batches=db.all(_BATCHES, values),
        users=db.all(_USERS),
        sizes={row["name"]: row["bytes"] for row in db.all(_SIZES)},
    )

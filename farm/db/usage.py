"""Usage: what every second of every card went into, and reports of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

from psycopg.types.json import Jsonb

from farm.db.database import Connection, Database
from farm.errors import InvalidInput
from farm.spec.uses import Use


@dataclass(frozen=True)
class Spent:
    """All seconds of an hour that a session spent on a batch and checkpoint in one way.

    Attributes:
        hour: its beginning, as Postgres told it.
        batch_id: 0 for none.
    """

    hour: str
    batch_id: int
    checkpoint: str
    use: Use
    seconds: float


@dataclass(frozen=True)
class Line:
    """Seconds of one key of a report, by use."""

    key: str
    seconds: dict[Use, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


# Totals, not amounts to add: written twice they are still right.
_RECORD = """
INSERT INTO usage (worker, session_id, hour, batch_id, checkpoint, use, user_id, seconds)
SELECT s.worker, s.id, e.hour, e.batch_id, e.checkpoint, e.use, b.user_id, e.seconds
FROM jsonb_to_recordset(%(entries)s) AS e (
    hour timestamptz, batch_id bigint, checkpoint text, use text, seconds float)
JOIN sessions s ON s.id = %(session_id)s
LEFT JOIN batches b ON b.id = e.batch_id
ON CONFLICT (session_id, hour, batch_id, checkpoint, use, worker)
DO UPDATE SET seconds = excluded.seconds
"""

# Of a session that lived for long the first hours have been added to their days: what it wrote of
# the others is compared with how long those were.
LOSE = """
), missing AS (
    SELECT g.id, g.worker, date_trunc('hour', g.beat_at, 'UTC') AS hour,
           extract(epoch FROM g.beat_at - k.since)::float
           - coalesce((SELECT sum(seconds) FROM usage u
                       WHERE u.session_id = g.id
                         AND (k.since = g.started_at OR u.hour >= k.since)), 0) AS seconds
    FROM gone g
    CROSS JOIN LATERAL (
        SELECT CASE WHEN min(hour) > g.started_at + interval '1 day'
                    THEN min(hour) + interval '1 hour' ELSE g.started_at END AS since
        FROM usage WHERE session_id = g.id) k
), held AS (
    SELECT l.session_id, l.batch_id, count(*) / sum(count(*)) OVER (PARTITION BY l.session_id)
           AS part
    FROM leases l JOIN gone g ON g.id = l.session_id
    WHERE l.started_at IS NOT NULL GROUP BY l.session_id, l.batch_id
), lost AS (
    INSERT INTO usage AS u (worker, session_id, hour, batch_id, checkpoint, use, user_id, seconds)
    SELECT m.worker, m.id, m.hour, coalesce(h.batch_id, 0),
           coalesce(b.spec -> 'template' ->> 'checkpoint', ''),
           CASE WHEN h.batch_id IS NULL THEN 'waiting' ELSE 'failed' END,
           b.user_id, m.seconds * coalesce(h.part, 1)
    FROM missing m LEFT JOIN held h ON h.session_id = m.id LEFT JOIN batches b ON b.id = h.batch_id
    WHERE m.seconds > 0
    ON CONFLICT (session_id, hour, batch_id, checkpoint, use, worker)
    DO UPDATE SET seconds = u.seconds + excluded.seconds
)
"""
"""What sessions that are ``gone`` did not live to write, up to their last heartbeats: lost to
what they had in flight. A part of a statement that ends sessions, lest it be counted twice."""

_KEYS = {
    "user": "coalesce(n.name, '')",
    "batch": "CASE WHEN u.batch_id = 0 THEN '' ELSE u.batch_id::text END",
    "checkpoint": "u.checkpoint",
    "day": "to_char(u.hour AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    "worker": "u.worker",
}
KEYS = tuple(_KEYS)
"""What a report can be made by."""

_REPORT = """
SELECT {key} AS key, u.use, sum(u.seconds) AS seconds
FROM usage u LEFT JOIN users n ON n.id = u.user_id
WHERE u.hour > %(since)s::timestamptz - interval '1 hour'
GROUP BY 1, 2 ORDER BY 1, 2
"""

# What goes is added to its day in the same statement, so that a slice may be any part of it.
_ROLL_UP = """
WITH old AS (
    DELETE FROM usage WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM usage
        WHERE {finer} AND hour < date_trunc('day', now(), 'UTC') - make_interval(days => %(days)s)
        ORDER BY hour LIMIT %(limit)s))
    RETURNING *
), added AS (
INSERT INTO usage AS u (worker, session_id, hour, batch_id, checkpoint, use, user_id, seconds)
SELECT {worker}, '', date_trunc('day', hour, 'UTC'), batch_id, checkpoint, use, max(user_id),
       sum(seconds)
FROM old GROUP BY {worker}, date_trunc('day', hour, 'UTC'), batch_id, checkpoint, use
ORDER BY 3, 4, 5, 6, 1
ON CONFLICT (session_id, hour, batch_id, checkpoint, use, worker)
DO UPDATE SET seconds = u.seconds + excluded.seconds
)
SELECT count(*) AS gone FROM old
"""
_BY_DAY = _ROLL_UP.format(finer="session_id <> ''", worker="worker")
_BY_FARM = _ROLL_UP.format(finer="session_id = '' AND worker <> ''", worker="''::text")


def record(connection: Connection, session_id: str, spent: Iterable[Spent]) -> None:
    """Write the totals of a session; the same once more changes nothing."""
    entries = [asdict(each) for each in spent]
    if entries:
        values = {"session_id": session_id, "entries": Jsonb(entries)}
        connection.execute(_RECORD, values)


def report(db: Database, *, by: str, since: datetime) -> list[Line]:
    """Seconds by use since an hour, one line for each user, batch, checkpoint, day or worker.

    The key is empty for seconds that belong to none. Of days long past only whole days are known.

    Raises:
        InvalidInput: ``by`` is none of :data:`KEYS`.
    """
    if by not in _KEYS:
        raise InvalidInput(
            f"by: there is no report by {by[:40]!r}.",
            field="by",
            value=by,
            remedy=f"Use one of {', '.join(KEYS)}.",
        )
    lines: dict[str, Line] = {}
    for row in db.all(_REPORT.format(key=_KEYS[by]), {"since": since}):
        line = lines.setdefault(row["key"], Line(row["key"], {}))
        line.seconds[row["use"]] = row["seconds"]
    return list(lines.values())


def roll_up(db: Database, *, hours: int, workers: int, limit: int) -> bool:
    """Add up a little of what is finer than anybody will ask for, the oldest first; whether there
    may be more. It may be cut off anywhere, and once all is done, doing it again changes nothing.

    Args:
        hours: days of which sessions and hours stay known; before them, workers and days.
        workers: days of which workers stay known; before them, days alone.
        limit: most rows that go in a statement.
    """
    by_day = db.one(_BY_DAY, {"days": hours, "limit": limit})
    by_farm = db.one(_BY_FARM, {"days": workers, "limit": limit})
    assert by_day
    assert by_farm
    return limit in (by_day["gone"], by_farm["gone"])

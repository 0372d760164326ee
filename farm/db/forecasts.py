"""Forecasts: what is left of batches, when they were to end, and when they did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias

from farm.db.database import Database
from farm.db.spans import SPANS, Span, count, spans

Moment: TypeAlias = Literal["accepted", "half"]
"""When a forecast is made: as soon as a batch is seen, and when half of its jobs have begun."""


@dataclass(frozen=True)
class Left:
    """What is left of an open batch: jobs not claimed, in flight, and to be tried again.

    Attributes:
        tags: that a worker must have.
        spans: of the jobs that nobody has claimed.
    """

    id: int
    user_id: int
    weight: float
    priority: int
    total: int
    in_flight: int
    waiting: int
    tags: list[str]
    spans: tuple[Span, ...]

    @property
    def jobs(self) -> int:
        return count(self.spans) + self.in_flight + self.waiting


@dataclass(frozen=True)
class Forecast:
    """When a batch is to end, in seconds from now.

    Attributes:
        model: as the costs of its jobs add up.
        p50, p90: what experience makes of that.
    """

    batch_id: int
    moment: Moment
    model: float
    p50: float
    p90: float


@dataclass(frozen=True)
class Past:
    """A forecast of a batch that has ended since; seconds."""

    batch_id: int
    moment: Moment
    made_at: datetime
    model: float
    p50: float
    p90: float
    taken: float


_LEFT = f"""
SELECT b.id, b.user_id, u.weight, b.priority, b.total, b.tags, {SPANS} AS spans,
       coalesce(l.jobs, 0) AS in_flight, coalesce(r.jobs, 0) AS waiting
FROM batches b
JOIN users u ON u.id = b.user_id
LEFT JOIN (SELECT batch_id, count(*) AS jobs FROM leases GROUP BY 1) l ON l.batch_id = b.id
LEFT JOIN (SELECT batch_id, count(*) AS jobs FROM requeue GROUP BY 1) r ON r.batch_id = b.id
WHERE b.ended_at IS NULL AND b.state = 'open'
ORDER BY b.priority DESC, b.id LIMIT %(limit)s
"""

_MAKE = """
INSERT INTO forecasts (batch_id, moment, model, p50, p90)
SELECT %(batch_id)s, %(moment)s, %(model)s, %(p50)s, %(p90)s
WHERE EXISTS (SELECT FROM batches WHERE id = %(batch_id)s AND ended_at IS NULL)
ON CONFLICT (batch_id, moment) DO NOTHING
"""

_JUDGE = """
WITH over AS (
    SELECT f.batch_id, f.moment, b.state,
           greatest(extract(epoch FROM b.ended_at - f.made_at)::float, 0) AS taken
    FROM forecasts f JOIN batches b ON b.id = f.batch_id
    WHERE f.taken IS NULL AND b.ended_at IS NOT NULL
), void AS (
    DELETE FROM forecasts f USING over o
    WHERE f.batch_id = o.batch_id AND f.moment = o.moment AND o.state = 'cancelled'
)
UPDATE forecasts f SET taken = o.taken FROM over o
WHERE f.batch_id = o.batch_id AND f.moment = o.moment AND o.state <> 'cancelled'
"""

_PAST = """
SELECT f.batch_id, f.moment, f.made_at, f.model, f.p50, f.p90, f.taken
FROM forecasts f WHERE f.taken IS NOT NULL
ORDER BY f.made_at DESC LIMIT %(limit)s
"""


def left(db: Database, *, limit: int) -> list[Left]:
    """The open batches with what is left of them, the most important first."""
    rows = db.all(_LEFT, {"limit": limit})
    return [Left(**{**row, "spans": spans(row["spans"])}) for row in rows]


def make(db: Database, found: Iterable[Forecast]) -> None:
    """Remember forecasts; one that was made before stands."""
    rows: list[dict[str, Any]] = [asdict(forecast) for forecast in found]
    if rows:
        with db.connection() as connection:
            connection.cursor().executemany(_MAKE, rows)


def void(db: Database, batch_id: int) -> None:
    """Forget the forecasts of a batch that people hold up or move forward."""
    with db.connection() as connection:
        connection.execute(
            "DELETE FROM forecasts WHERE batch_id = %s AND taken IS NULL", (batch_id,)
        )


def judge(db: Database) -> None:
    """Note what the batches that have ended took; cancelled ones prove nothing."""
    with db.connection() as connection:
        connection.execute(_JUDGE)


def past(db: Database, *, limit: int) -> list[Past]:
    """Forecasts whose batches have ended, the newest first."""
    return [Past(**row) for row in db.all(_PAST, {"limit": limit})]

"""Dead letters: jobs that have failed for good, why, and trying them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from farm.db import queries
from farm.db.database import Database

LOOKED_AT = 10_000
"""Failed jobs of a batch whose causes are told apart; the others are only counted."""


@dataclass(frozen=True)
class Cause:
    """Jobs of a batch that failed for the same reason.

    Attributes:
        failure_class: see :func:`farm.spec.moves.judge`.
        first: the lowest number among them.
        workers: that their last attempts were made on.
    """

    failure_class: str
    detail: str
    remedy: str | None
    jobs: int
    first: int
    workers: Sequence[str]


@dataclass(frozen=True)
class Failed:
    """A batch with failed jobs, and why they failed, the most frequent cause first."""

    batch_id: int
    name: str
    user: str
    state: str
    failed: int
    causes: Sequence[Cause]


# From one batch with failures to the next by the index of failed outcomes: what succeeded is
# never looked at.
_BATCHES = """
WITH RECURSIVE found AS (
    (SELECT batch_id FROM outcomes WHERE state = 'failed' AND batch_id < %(before)s
     ORDER BY batch_id DESC LIMIT 1)
    UNION ALL
    SELECT (SELECT batch_id FROM outcomes o WHERE o.state = 'failed' AND o.batch_id < f.batch_id
            ORDER BY o.batch_id DESC LIMIT 1)
    FROM found f WHERE f.batch_id IS NOT NULL
)
SELECT b.id AS batch_id, b.name, u.name AS user, b.state,
       (SELECT sum(failed) FROM batch_progress WHERE batch_id = b.id)::bigint AS failed
FROM (SELECT batch_id FROM found JOIN batches ON id = batch_id
      WHERE state <> 'pruned' LIMIT %(limit)s) f
JOIN batches b ON b.id = f.batch_id
JOIN users u ON u.id = b.user_id
ORDER BY b.id DESC
"""

_CAUSES = """
SELECT coalesce(o.error ->> 'class', 'worker') AS failure_class,
       coalesce(o.error ->> 'detail', 'Nobody knows why.') AS detail,
       o.error ->> 'remedy' AS remedy, count(*) AS jobs, min(o.ord) AS first,
       array_remove(array_agg(DISTINCT t.worker ORDER BY t.worker), NULL) AS workers
FROM (SELECT * FROM outcomes WHERE batch_id = %(batch_id)s AND state = 'failed'
      ORDER BY ord LIMIT %(limit)s) o
LEFT JOIN attempts t USING (batch_id, ord, attempt)
GROUP BY 1, 2, 3 ORDER BY jobs DESC, first
"""


def page(db: Database, *, limit: int, before: int | None = None) -> list[Failed]:
    """Batches with failed jobs, the newest first, starting below ``before``."""
    rows = db.all(_BATCHES, {"limit": limit, "before": 2**62 if before is None else before})
    return [Failed(**row, causes=causes(db, row["batch_id"])) for row in rows]


def causes(db: Database, batch_id: int) -> list[Cause]:
    """Why the first :data:`LOOKED_AT` failed jobs of a batch failed, the most frequent first."""
    values: dict[str, Any] = {"batch_id": batch_id, "limit": LOOKED_AT}
    return [Cause(**row) for row in db.all(_CAUSES, values)]


def repeat(db: Database, batch_id: int, ord: int | None = None) -> int:
    """REPEAT the failed jobs of a batch, or one of them, and wake the dispatcher; how many.

    Those of a cancelled batch stay as they are: what it never began would begin, too.
    """
    with db.connection() as connection:
        row = connection.execute(queries.REPEAT, {"batch_id": batch_id, "ord": ord}).fetchone()
        connection.execute(queries.WAKE)
    assert row is not None
    return int(row["repeated"])

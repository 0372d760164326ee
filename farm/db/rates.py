"""What jobs of each checkpoint have taken of late."""

from __future__ import annotations

from farm.db.database import Database

# In the order of pages, not of time: any of them will do, and none is sorted.
_RATES = """
SELECT checkpoint, sum(seconds) / sum(units) AS rate
FROM (SELECT stats ->> 'checkpoint' AS checkpoint, (stats ->> 'gpu_seconds')::float AS seconds,
             (stats ->> 'units')::float AS units
      FROM attempts
      WHERE ended_at > now() - make_interval(hours => %(hours)s) AND result = 'succeeded'
      LIMIT 20000) a
WHERE units > 0 GROUP BY checkpoint
"""

WINDOWS = (1, 24, 24 * 30)
"""Hours to look back, until something is found."""


def rates(db: Database) -> dict[str, float]:
    """GPU-seconds a unit of work (:func:`farm.dispatch.cost.units`) by checkpoint."""
    for hours in WINDOWS:
        if found := db.all(_RATES, {"hours": hours}):
            return {row["checkpoint"]: row["rate"] for row in found if row["checkpoint"]}
    return {}

"""What waits: the open batches and the jobs to retry, as the dispatcher reads them each cycle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from farm.db import queries
from farm.db.database import Database
from farm.db.spans import SPANS, Span, spans

STOPPED = 10_000
"""Jobs that wait to be retried, and are stopped in one go: a leader that is silent for longer than
that takes is followed."""


class OpenBatch(NamedTuple):
    """A batch with jobs that nobody has claimed, which are its spans."""

    id: int
    user_id: int
    priority: int
    tags: list[str]
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Retry:
    """A job that may be tried again now."""

    batch_id: int
    ord: int
    user_id: int
    priority: int
    crashes: int
    avoid: str | None
    tags: list[str]


@dataclass(frozen=True)
class Entitled:
    """A user with work: weight, jobs in flight, and how many those may be at most."""

    user_id: int
    weight: float
    max_in_flight: int | None
    in_flight: int


@dataclass(frozen=True)
class Spent:
    """An attempt that ended: the GPU-seconds it took, None where nobody knows, and the seconds
    for which it waited for its checkpoint to be loaded.

    Attributes:
        upscaler: the model that enlarged its picture, how much that was shown, see
            :func:`farm.dispatch.cost.upscaled`, and what it took of the GPU-seconds.
    """

    batch_id: int
    ord: int
    attempt: int
    result: str
    gpu_seconds: float | None
    load_seconds: float = 0.0
    upscaler: str | None = None
    upscaled: float = 0.0
    upscale_seconds: float = 0.0


# From one user with open batches to the next, and of each only the first few, as they lie in the
# index: others, too, must be seen, however many batches one has, and nobody's are read in full.
_OPEN = f"""
WITH RECURSIVE working AS (
    (SELECT user_id FROM batches WHERE ended_at IS NULL AND state = 'open'
     ORDER BY user_id LIMIT 1)
    UNION ALL
    SELECT (SELECT b.user_id FROM batches b
            WHERE b.ended_at IS NULL AND b.state = 'open' AND b.user_id > w.user_id
            ORDER BY b.user_id LIMIT 1)
    FROM working w WHERE w.user_id IS NOT NULL
)
SELECT b.id, b.user_id, b.priority, b.tags, {SPANS} AS spans
FROM working w CROSS JOIN LATERAL (
    SELECT *, row_number() OVER (ORDER BY priority DESC, id) AS place
    FROM (SELECT * FROM batches
          WHERE user_id = w.user_id AND ended_at IS NULL AND state = 'open' AND cursor < total
            AND priority >= %(least)s AND id <> ALL(%(aside)s::bigint[])
          ORDER BY user_id, priority DESC, id LIMIT %(each)s) first) b
ORDER BY b.place, b.priority DESC, b.id LIMIT %(limit)s
"""

_ENTITLED = """
SELECT u.id AS user_id, u.weight, u.max_in_flight, coalesce(f.in_flight, 0) AS in_flight
FROM users u
LEFT JOIN (SELECT b.user_id, count(*) AS in_flight
           FROM leases l JOIN batches b ON b.id = l.batch_id GROUP BY b.user_id) f
       ON f.user_id = u.id
WHERE f.in_flight > 0 OR u.id = ANY (%(waiting)s)
"""

_SPENT = """
SELECT batch_id, ord, attempt, result, gpu_seconds::float AS gpu_seconds,
       coalesce(load_seconds::float, 0) AS load_seconds, stats ->> 'upscaler' AS upscaler,
       coalesce((stats ->> 'upscaled')::float, 0) AS upscaled,
       coalesce((stats ->> 'upscale_seconds')::float, 0) AS upscale_seconds
FROM attempts WHERE ended_at > now() - make_interval(secs => %(seconds)s)
"""

# From one batch with such jobs to the next, and of each the few that are due first: a million that
# wait for their time, or for their turn, are not read.
_RETRIES = """
WITH RECURSIVE waiting AS (
    (SELECT batch_id, 1 AS number FROM requeue WHERE batch_id > %(after)s
     ORDER BY batch_id LIMIT 1)
    UNION ALL
    SELECT (SELECT r.batch_id FROM requeue r WHERE r.batch_id > w.batch_id
            ORDER BY r.batch_id LIMIT 1), number + 1
    FROM waiting w WHERE w.batch_id IS NOT NULL AND number < %(batches)s
)
SELECT w.batch_id, w.number, r.ord, b.user_id, b.priority, r.crashes, r.avoid, b.tags,
       r.not_before, %(jobs)s / (SELECT count(*) FROM waiting) AS share
FROM waiting w
LEFT JOIN unnest(%(batch_ids)s::bigint[], %(times)s::timestamptz[], %(ords)s::bigint[])
          AS a (batch_id, not_before, ord) ON a.batch_id = w.batch_id
LEFT JOIN LATERAL (
    SELECT * FROM batches WHERE id = w.batch_id AND state = 'open' AND priority >= %(least)s
    OFFSET 0) b ON true
LEFT JOIN LATERAL (
    SELECT * FROM requeue WHERE batch_id = b.id AND not_before <= now()
      AND (not_before, ord) > (coalesce(a.not_before, '-infinity'), coalesce(a.ord, -1))
    ORDER BY not_before, ord LIMIT %(jobs)s / (SELECT count(*) FROM waiting)) r ON true
WHERE w.batch_id IS NOT NULL
ORDER BY w.number, r.not_before, r.ord
"""


def open_batches(
    db: Database, *, least: int, each: int, limit: int, aside: Collection[int] = ()
) -> list[OpenBatch]:
    """Open batches with unclaimed jobs: of each user the first, then the second, and so on.

    A user's batches come in the order in which they are to be served: highest priority first,
    then oldest. Only those of priority ``least`` and up, and none of ``aside``.
    """
    values = {"least": least, "each": each, "limit": limit, "aside": list(aside)}
    rows = db.all(_OPEN, values)
    return [OpenBatch(**{**row, "spans": spans(row["spans"])}) for row in rows]


def entitled(db: Database, waiting: Collection[int]) -> list[Entitled]:
    """The users who have jobs in flight or are among those ``waiting``."""
    return [Entitled(**row) for row in db.all(_ENTITLED, {"waiting": list(waiting)})]


def spent(db: Database, *, seconds: float) -> list[Spent]:
    """The attempts that ended in the last so many seconds."""
    return [Spent(**row) for row in db.all(_SPENT, {"seconds": seconds})]


class Retries:
    """Reads the jobs that may be tried again, a bounded number at a time.

    Where more batches have such jobs than are looked at, others have their turn the next time: each
    is seen once in so many looks as the batches fill. Where a batch has more than are looked at,
    those behind have their turn when nobody takes the first.

    Args:
        batches: most batches that are looked at.
        jobs: most jobs, as many of each batch.
    """

    def __init__(self, *, batches: int, jobs: int) -> None:
        self._limits = {"batches": batches, "jobs": jobs}
        self._after = 0
        self._from: dict[int, tuple[datetime, int]] = {}
        self._last: dict[int, tuple[datetime, int]] = {}

    def turn(self) -> None:
        """Look at the next ones of each batch from now on; behind the last, at the first again."""
        self._from, self._last = self._last, {}

    def look(self, db: Database, *, least: int) -> list[Retry]:
        """Those of priority ``least`` and up whose time has come."""
        places = {
            "batch_ids": list(self._from),
            "times": [due for due, _ in self._from.values()],
            "ords": [ord for _, ord in self._from.values()],
        }
        values = {**self._limits, **places, "least": least}
        rows = db.all(_RETRIES, {**values, "after": self._after})
        if not rows and self._after:
            rows = db.all(_RETRIES, {**values, "after": 0})
        more = rows and rows[-1]["number"] == self._limits["batches"]
        self._after = rows[-1]["batch_id"] if more else 0
        found = [row for row in rows if row["ord"] is not None]
        seen = Counter(row["batch_id"] for row in found)
        for row in found:
            if seen[row["batch_id"]] >= row["share"]:
                self._last[row["batch_id"]] = row["not_before"], row["ord"]
        return [Retry(**{name: row[name] for name in Retry.__match_args__}) for row in found]


def suspects(db: Database, *, crashes: int) -> set[str]:
    """Sessions that hold a job which is to run alone."""
    rows = db.all(
        "SELECT DISTINCT session_id FROM leases WHERE crashes >= %(crashes)s",
        {"crashes": crashes},
    )
    return {row["session_id"] for row in rows}


def finish(db: Database, *, among: Collection[int] | None = None) -> list[int]:
    """Close the batches that have nothing left to do; their ids.

    Args:
        among: batches that may be at their end; None to look at all that are open. Cancelled ones
            are looked at in any case.
    """
    which = queries.FINISHABLE_OF_ALL if among is None else queries.FINISHABLE
    with db.connection() as connection:
        connection.execute(queries.STOP_WAITING, {"limit": STOPPED})
        # Judged anew once they are locked: a job may have been repeated in between.
        found = connection.execute(which, {"among": list(among or ())})
        ids = [row["id"] for row in found]
        return [row["id"] for row in connection.execute(queries.FINISH, {"ids": ids})]

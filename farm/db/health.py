"""Health of workers: failures in a row, quarantines, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from farm.db import queries, sessions
from farm.db.database import Database
from farm.spec.canary import CHECKPOINT

PAUSES = (30.0, 3600.0)
"""Seconds before the next canaries: doubling from the first, up to the last."""

CANARY = "canary"
"""The order that has a worker make its canaries."""


@dataclass(frozen=True)
class Failure:
    """A failed attempt that may be its worker's own fault, or a death of the worker.

    Attributes:
        event: the same for all jobs that one death took; else one of its own for each batch.
    """

    host: str
    worker: str
    event: str
    batch_id: int
    ended_at: datetime
    detail: str


@dataclass(frozen=True)
class Quarantine:
    """A worker that gets no jobs.

    Attributes:
        by_hand: a person's doing, which only a person ends.
        times: how often in a row, less than a day apart.
        tests: canaries that it failed.
        test_at: when it gets its next ones.
        last_test: how the last ones went wrong.
    """

    host: str
    worker: str
    reason: str
    since: datetime
    by_hand: bool
    times: int
    tests: int
    test_at: datetime | None
    last_test: str | None


# The partial index has failures alone, so that this costs what fails, not what is made.
_FAILURES = """
SELECT w.host, w.worker, f.event, f.batch_id, f.ended_at, f.detail
FROM (SELECT DISTINCT s.host, s.worker, coalesce(q.ended_at, '-infinity') AS released
      FROM sessions s LEFT JOIN quarantines q ON q.host = s.host AND q.worker = s.worker
      WHERE s.ended_at IS NULL AND s.state = 'live') w
CROSS JOIN LATERAL (
    SELECT CASE WHEN a.result = 'lost' THEN a.session_id ELSE a.batch_id::text END AS event,
           a.batch_id, a.ended_at, coalesce(a.error ->> 'detail', a.result) AS detail
    FROM attempts a JOIN sessions own ON own.id = a.session_id AND own.host = w.host
    WHERE a.worker = w.worker AND a.result IN ('retry', 'failed', 'lost')
      AND a.error ->> 'class' = ANY (%(blamed)s)
      AND a.ended_at > greatest(now() - make_interval(secs => %(seconds)s), w.released)
    ORDER BY a.ended_at DESC LIMIT 200) f
ORDER BY w.host, w.worker, f.ended_at DESC
"""

_SUCCEEDED = """
SELECT 1 FROM attempts a JOIN sessions s ON s.id = a.session_id AND s.host = %(host)s
WHERE a.ended_at > %(since)s AND a.worker = %(worker)s AND a.result = 'succeeded' LIMIT 1
"""

_PAUSE = "make_interval(secs => least(%(longest)s::float, %(first)s::float * 2 ^ ({times} - 1)))"

# The first time it is tested at once: one bad hour of a store or a network is soon over.
_QUARANTINE = f"""
WITH kept AS (
    INSERT INTO quarantines AS q (host, worker, reason, by_hand, test_at)
    SELECT DISTINCT host, worker, %(reason)s, %(by_hand)s::boolean,
           CASE WHEN NOT %(by_hand)s THEN now() END
    FROM sessions
    WHERE worker = %(worker)s AND (%(host)s::text IS NULL OR host = %(host)s) AND ended_at IS NULL
    ON CONFLICT (host, worker) DO UPDATE
    SET reason = excluded.reason, by_hand = excluded.by_hand, tests = 0, answers = NULL,
        last_test = NULL,
        since = CASE WHEN q.ended_at IS NULL THEN q.since ELSE now() END, ended_at = NULL,
        times = CASE WHEN q.ended_at > now() - interval '1 day' THEN q.times + 1 ELSE 1 END,
        test_at = CASE WHEN excluded.by_hand THEN NULL
                       WHEN q.ended_at > now() - interval '1 day'
                       THEN now() + {_PAUSE.format(times="least(q.times, 20)")}
                       ELSE now() END
    WHERE q.ended_at IS NOT NULL OR excluded.by_hand
    RETURNING host, worker
)
UPDATE sessions s SET state = 'quarantined' FROM kept
WHERE s.host = kept.host AND s.worker = kept.worker AND s.ended_at IS NULL
  AND s.state = 'live'
"""

_THERE = """
SELECT FROM sessions
WHERE worker = %(worker)s AND (%(host)s::text IS NULL OR host = %(host)s) AND ended_at IS NULL
"""

_RESUME = """
WITH over AS (
    UPDATE quarantines SET ended_at = now(), answers = NULL
    WHERE worker = %(worker)s AND (%(host)s::text IS NULL OR host = %(host)s)
      AND ended_at IS NULL
)
UPDATE sessions SET state = 'live'
WHERE worker = %(worker)s AND (%(host)s::text IS NULL OR host = %(host)s)
  AND ended_at IS NULL AND (state = 'quarantined' OR (state = 'draining' AND %(drained)s))
"""

# A worker that dies of its canaries gets others: they are due again before it could answer.
_ORDER = """
WITH due AS (
    UPDATE quarantines q SET test_at = now() + interval '10 minutes', answers = NULL
    FROM sessions s
    WHERE q.ended_at IS NULL AND q.test_at <= now() AND q.answers IS NULL
      AND s.host = q.host AND s.worker = q.worker AND s.ended_at IS NULL
      AND s.state = 'quarantined'
    RETURNING s.id, q.worker
), told AS (
    INSERT INTO orders (session_id, subject, action) SELECT id, %(subject)s, %(action)s FROM due
    ON CONFLICT (session_id, subject) DO UPDATE SET action = excluded.action, ordered_at = now()
)
SELECT DISTINCT worker FROM due
"""

_ANSWER = """
UPDATE quarantines q SET answers = %(answers)s FROM sessions s
WHERE s.id = %(session_id)s AND q.host = s.host AND q.worker = s.worker AND q.ended_at IS NULL
"""

_FAILED_TEST = f"""
UPDATE quarantines
SET tests = tests + 1, answers = NULL, last_test = %(told)s,
    test_at = now() + {_PAUSE.format(times="least(tests + 1, 20)")}
WHERE host = %(host)s AND worker = %(worker)s AND ended_at IS NULL
"""


def failures(db: Database, *, blamed: Sequence[str], seconds: float) -> list[Failure]:
    """Failures of live workers in the last so many seconds, since their last quarantine: worker
    by worker, the newest first.

    Args:
        blamed: classes that may be the worker's own fault.
    """
    rows = db.all(_FAILURES, {"blamed": list(blamed), "seconds": seconds})
    return [Failure(**row) for row in rows]


def has_succeeded(db: Database, failure: Failure) -> bool:
    """Whether the worker has made an image since that failure."""
    values = {"host": failure.host, "worker": failure.worker, "since": failure.ended_at}
    return db.one(_SUCCEEDED, values) is not None


def quarantine(
    db: Database, worker: str, reason: str, *, host: str | None = None, by_hand: bool
) -> int:
    """Give a worker no more jobs until it has passed its canaries, or somebody resumes it.

    Args:
        host: only the one there; by default on every host.
        by_hand: no canary ends it.
    Returns:
        how many sessions it has; those that drain go on with that.
    """
    first, longest = PAUSES
    values = {
        "worker": worker,
        "host": host,
        "reason": reason,
        "by_hand": by_hand,
        "first": first,
        "longest": longest,
    }
    with db.connection() as connection:
        sessions.one_by_one(connection, worker)
        connection.execute(_QUARANTINE, values)
        return connection.execute(_THERE, values).rowcount


def resume(db: Database, worker: str, *, host: str | None = None, drained: bool = True) -> int:
    """Give a worker jobs again, whatever kept them away; how many of its sessions there are.

    Args:
        drained: those that drain, too.
    """
    values = {"worker": worker, "host": host, "drained": drained}
    with db.connection() as connection:
        sessions.one_by_one(connection, worker)
        connection.execute(_RESUME, values)
        there = connection.execute(_THERE, values).rowcount
        connection.execute(queries.WAKE)
    return there


def active(db: Database) -> list[Quarantine]:
    """Every quarantine that has not ended, by host and worker."""
    rows = db.all(
        """SELECT host, worker, reason, since, by_hand, times, tests, test_at, last_test
           FROM quarantines WHERE ended_at IS NULL ORDER BY host, worker"""
    )
    return [Quarantine(**row) for row in rows]


def order_canaries(db: Database) -> list[str]:
    """Have the workers that are due make their canaries; their names."""
    rows = db.all(_ORDER, {"subject": CHECKPOINT, "action": CANARY})
    return [row["worker"] for row in rows]


def answer(db: Database, session_id: str, answers: dict[str, Any]) -> None:
    """What a worker's canaries came out as: ``{"fields": [...]}`` or ``{"error": "..."}``."""
    with db.connection() as connection:
        connection.execute(_ANSWER, {"session_id": session_id, "answers": Jsonb(answers)})


def answered(db: Database) -> list[tuple[str, str, dict[str, Any]]]:
    """Host, worker and answers of canaries that are to be judged."""
    rows = db.all(
        "SELECT host, worker, answers FROM quarantines WHERE ended_at IS NULL AND answers <> 'null'"
    )
    return [(row["host"], row["worker"], row["answers"]) for row in rows]


def test_failed(db: Database, host: str, worker: str, told: str) -> None:
    """The worker's canaries were wrong; it gets others after a pause."""
    first, longest = PAUSES
    with db.connection() as connection:
        connection.execute(
            _FAILED_TEST,
            {"host": host, "worker": worker, "told": told, "first": first, "longest": longest},
        )

"""The facts that say why a job is where it is."""

from __future__ import annotations

from dataclasses import dataclass

from farm.db import health, sessions
from farm.db.database import Database
from farm.db.spans import COUNT, UNCLAIMED
from farm.spec.batch import INTERACTIVE_FROM, NORMAL_FROM


@dataclass(frozen=True)
class Facts:
    """What is known of a waiting job's surroundings.

    Attributes:
        checkpoint: that it needs.
        batch_state: ``open``, ``paused``, ``cancelled`` or ``done``.
        user: whose it is.
        retry_seconds: until it may be tried again; None unless it waits for that.
        retry_reason: why the last attempt ended; None before there was one.
        cap, in_flight: most jobs of the user in flight, None for any number, and how many are.
        before_in_batch: jobs of its batch that are placed before it: of the span that it is in.
        before_of_user: jobs of the user's other batches that are.
        higher: jobs of other users in a higher class.
        others: other users whose jobs of its class wait.
        tags: that a worker must have.
        workers: that live and take jobs.
        queued: jobs that its worker holds and was given before it.
        away: workers in quarantine, each with its reason.
        refusing: live workers that can begin no job now, each with its reason.
    """

    checkpoint: str
    batch_state: str
    user: str
    retry_seconds: float | None
    retry_reason: str | None
    cap: int | None
    in_flight: int
    before_in_batch: int
    before_of_user: int
    higher: int
    others: int
    tags: tuple[str, ...]
    workers: tuple[str, ...]
    queued: int
    away: tuple[str, ...] = ()
    refusing: tuple[str, ...] = ()


_FACTS = f"""
WITH job AS (
    SELECT b.*, {UNCLAIMED} AS unclaimed, u.name AS user, u.max_in_flight AS cap,
           (b.priority >= %(interactive)s)::int + (b.priority >= %(normal)s)::int AS class
    FROM batches b JOIN users u ON u.id = b.user_id WHERE b.id = %(batch_id)s
), waiting AS (
    SELECT b.id, b.user_id, b.priority, {COUNT} AS left,
           (b.priority >= %(interactive)s)::int + (b.priority >= %(normal)s)::int AS class
    FROM batches b
    WHERE b.ended_at IS NULL AND b.state = 'open' AND b.cursor < b.total
)
SELECT job.state AS batch_state, job.user, job.cap, job.tags,
       (SELECT count(*) FROM leases l JOIN batches b ON b.id = l.batch_id
        WHERE b.user_id = job.user_id) AS in_flight,
       coalesce((SELECT %(ord)s - lower(s) FROM unnest(job.unclaimed) AS s
                 WHERE s @> %(ord)s::bigint), 0) AS before_in_batch,
       coalesce((SELECT sum(w.left) FROM waiting w
                 WHERE w.user_id = job.user_id AND w.id <> job.id
                   AND (w.priority > job.priority
                        OR (w.priority = job.priority AND w.id < job.id))), 0)::bigint
           AS before_of_user,
       coalesce((SELECT sum(w.left) FROM waiting w
                 WHERE w.user_id <> job.user_id AND w.class > job.class), 0)::bigint AS higher,
       (SELECT count(DISTINCT w.user_id) FROM waiting w
        WHERE w.user_id <> job.user_id AND w.class = job.class) AS others,
       extract(epoch FROM r.not_before - now())::float AS retry_seconds,
       CASE WHEN r.attempt > 0 THEN r.reason END AS retry_reason,
       (SELECT count(*) FROM leases l JOIN leases own
            ON own.batch_id = %(batch_id)s AND own.ord = %(ord)s
           AND l.session_id = own.session_id AND l.assigned_at < own.assigned_at) AS queued
FROM job LEFT JOIN requeue r ON r.batch_id = job.id AND r.ord = %(ord)s
"""


def facts(db: Database, batch_id: int, ord: int, checkpoint: str) -> Facts | None:
    """The facts of a job; None where its batch is gone."""
    row = db.one(
        _FACTS,
        {
            "batch_id": batch_id,
            "ord": ord,
            "interactive": INTERACTIVE_FROM,
            "normal": NORMAL_FROM,
        },
    )
    if row is None:
        return None
    known = sessions.live(db)
    return Facts(
        checkpoint=checkpoint,
        tags=tuple(row.pop("tags")),
        workers=tuple(session.worker for session in known if session.takes_jobs),
        away=tuple(f"{each.worker}: {each.reason}" for each in health.active(db)),
        refusing=tuple(f"{each.worker}: {each.refusal}" for each in known if each.refusal),
        **row,
    )

"""Orders: what people want workers to do. Heard with the next heartbeat."""

from __future__ import annotations

from typing import Literal, TypeAlias

from farm.db.database import Database

Action: TypeAlias = Literal["warm", "evict", "trace", "canary", "calibrate", "memory"]


def give(db: Database, action: Action, subject: str, *, worker: str | None) -> list[str]:
    """Tell ``worker``, or all that live; the last order about a subject counts.

    Args:
        subject: a checkpoint to warm or evict, or the id of a trace or report to make, a report's
            followed by a space and what is wanted, as JSON.

    Returns:
        The names of the workers that were told.
    """
    rows = db.all(
        """WITH told AS (
               INSERT INTO orders (session_id, subject, action)
               SELECT id, %(subject)s, %(action)s FROM sessions
               WHERE ended_at IS NULL AND (%(worker)s::text IS NULL OR worker = %(worker)s)
               ORDER BY id
               ON CONFLICT (session_id, subject) DO UPDATE
               SET action = excluded.action, ordered_at = now()
               RETURNING session_id)
           SELECT worker FROM sessions JOIN told ON id = session_id ORDER BY worker""",
        {"subject": subject, "action": action, "worker": worker},
    )
    return [row["worker"] for row in rows]


def take(db: Database, session_id: str) -> list[tuple[str, str]]:
    """The (action, subject) pairs given to a session; each is taken once."""
    rows = db.all(
        "DELETE FROM orders WHERE session_id = %(id)s RETURNING action, subject",
        {"id": session_id},
    )
    return [(row["action"], row["subject"]) for row in rows]

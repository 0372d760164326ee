"""Orders: what people want a worker to load or to let go. Heard with the next heartbeat."""

from __future__ import annotations

from typing import Literal, TypeAlias

from farm.db.database import Database

Action: TypeAlias = Literal["warm", "evict"]


def give(db: Database, checkpoint: str, action: Action, *, worker: str | None) -> list[str]:
    """Tell ``worker``, or all that live, to hold or let go of a checkpoint.

    The last order about a checkpoint counts.

    Returns:
        The names of the workers that were told.
    """
    rows = db.all(
        """WITH told AS (
               INSERT INTO orders (session_id, checkpoint, action)
               SELECT id, %(checkpoint)s, %(action)s FROM sessions
               WHERE ended_at IS NULL AND state = 'live'
                 AND (%(worker)s::text IS NULL OR worker = %(worker)s)
               ORDER BY id
               ON CONFLICT (session_id, checkpoint) DO UPDATE
               SET action = excluded.action, ordered_at = now()
               RETURNING session_id)
           SELECT worker FROM sessions JOIN told ON id = session_id ORDER BY worker""",
        {"checkpoint": checkpoint, "action": action, "worker": worker},
    )
    return [row["worker"] for row in rows]


def take(db: Database, session_id: str) -> list[tuple[str, str]]:
    """The (action, checkpoint) pairs given to a session; each is taken once."""
    rows = db.all(
        "DELETE FROM orders WHERE session_id = %(id)s RETURNING action, checkpoint",
        {"id": session_id},
    )
    return [(row["action"], row["checkpoint"]) for row in rows]

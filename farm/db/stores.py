"""Which image store is this farm's: by what is written in its root."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from farm.db.database import Database


def known(db: Database) -> str | None:
    """What stands in the root of the store; None before anybody has opened it."""
    row = db.one("SELECT id FROM image_store")
    return row["id"] if row else None


def first(db: Database, mark: Callable[[str], str]) -> str:
    """The same; whoever is the first to ask has it written there.

    Args:
        mark: writes it, and answers what stands there: that of a farm that was there before stays.
    """
    if id := known(db):
        return id
    id = uuid.uuid4().hex
    with db.connection() as connection:
        new = connection.execute(
            "INSERT INTO image_store (id) VALUES (%s) ON CONFLICT DO NOTHING RETURNING id", (id,)
        ).fetchone()
        if new:
            id = mark(id)
            connection.execute("UPDATE image_store SET id = %s", (id,))
            return id
    # Another was first, and has committed.
    return first(db, mark)

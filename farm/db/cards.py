"""Cards: what the workers that the farm knows can take, whether they are alive or away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from farm.db.database import Database


@dataclass(frozen=True)
class Card:
    """A worker as its last session was.

    Attributes:
        tags: that batches may ask for.
        fits: what it says of its memory, see :func:`farm.dispatch.fit.fit`.
        away: it has no session now.
    """

    worker: str
    host: str
    tags: frozenset[str]
    fits: dict[str, Any]
    away: bool


_LIVE = "SELECT worker, host, tags, fits, false AS away FROM sessions WHERE ended_at IS NULL"

_SEEN = """
SELECT DISTINCT ON (host, worker) worker, host, tags, fits, ended_at IS NOT NULL AS away
FROM sessions ORDER BY host, worker, ended_at DESC NULLS FIRST
"""


def live(db: Database) -> list[Card]:
    """The workers that have a session, whether it takes jobs or not."""
    return _cards(db, _LIVE)


def seen(db: Database) -> list[Card]:
    """Every worker of which the farm still knows a session, those that are away included."""
    return _cards(db, _SEEN)


def _cards(db: Database, query: str) -> list[Card]:
    return [Card(**{**row, "tags": frozenset(row["tags"])}) for row in db.all(query)]

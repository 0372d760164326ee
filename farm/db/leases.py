"""Leases: claiming, starting, ending and reaping attempts; one function for each move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from farm.db import queries
from farm.db.database import Database
from farm.spec.moves import FATAL_CRASHES, Move


class Lease(NamedTuple):
    """The right of one session to one attempt; ``attempt`` is the fencing token."""

    batch_id: int
    ord: int
    attempt: int
    session_id: str


@dataclass(frozen=True)
class Overdue:
    """A lease that its live session should have started by now.

    Attributes:
        message: what was sent.
        publishes: how often it was.
        draining: its session takes nothing more.
    """

    message: Lease
    publishes: int
    draining: bool

    @property
    def session_id(self) -> str:
        return self.message.session_id


@dataclass(frozen=True)
class Claim:
    """Jobs to lease to a session: ``count`` at the cursor, or these ``ords`` of the requeue."""

    batch_id: int
    session_id: str
    count: int = 0
    ords: Sequence[int] = ()


@dataclass(frozen=True)
class Started:
    """What a session learns when it starts an attempt; times in seconds."""

    failures: int
    crashes: int
    cancel_requested: bool
    assigned_seconds: float
    queue_seconds: float
    priority: int


@dataclass(frozen=True)
class Ending:
    """How an attempt ended; ``image`` holds the columns of the images table."""

    batch_id: int
    ord: int
    attempt: int
    move: Move
    error: dict[str, Any] | None = None
    stats: dict[str, Any] | None = None
    failures: int = 0
    delay: float = 0.0
    image: dict[str, Any] | None = None


def claim(db: Database, claims: Sequence[Claim]) -> list[Lease]:
    """CLAIM: lease jobs to sessions, all in one transaction; in the order of the claims."""
    heads = [one for one in claims if not one.ords]
    together = {
        "batch_ids": [one.batch_id for one in heads],
        "session_ids": [one.session_id for one in heads],
        "counts": [one.count for one in heads],
    }
    wanted: list[tuple[str, dict[str, Any]]] = [(queries.CLAIM, together)] if heads else []
    wanted += [
        (queries.RECLAIM, {**vars(one), "ords": list(one.ords)}) for one in claims if one.ords
    ]
    with db.connection() as connection, connection.pipeline():
        answers = [connection.execute(*each) for each in wanted]
    placed = [Lease(**row) for answer in answers for row in answer]
    order = {(one.batch_id, one.session_id): place for place, one in enumerate(claims)}
    return sorted(placed, key=lambda lease: (order[lease.batch_id, lease.session_id], lease.ord))


def start(db: Database, lease: Lease, *, again: bool = False) -> Started | None:
    """START one: stamp the lease; None when the message was stale or came twice.

    ``again`` repeats a start whose answer was lost: it may have been stamped then.
    """
    return start_group(db, lease.session_id, [(lease[:3], again)]).get(lease[:3])


def start_group(
    db: Database, session_id: str, starts: Sequence[tuple[tuple[int, int, int], bool]]
) -> dict[tuple[int, int, int], Started]:
    """START the (batch, ord, attempt) of a session, each with its ``again``, in one statement.

    What is missing in the answer had a stale message, or one that came twice.
    """
    wanted = [
        {"batch_id": batch_id, "ord": ord, "attempt": attempt, "again": again}
        for (batch_id, ord, attempt), again in starts
    ]
    rows = db.all(queries.START, {"session_id": session_id, "starts": Jsonb(wanted)})
    return {
        (row.pop("batch_id"), row.pop("ord"), row.pop("attempt")): Started(**row) for row in rows
    }


def end(
    db: Database, session_id: str, worker: str, endings: Sequence[Ending]
) -> dict[tuple[int, int, int], str]:
    """SUCCEED, FAIL, RETRY, RELEASE or STOP attempts, in one statement, and wake the dispatcher.

    Returns the new state by (batch, ord, attempt); what is missing there was fenced. It can be
    repeated when the answer was lost: what was taken the first time is reported as taken.
    """
    values = {
        "session_id": session_id,
        "worker": worker,
        "endings": Jsonb([vars(ending) for ending in endings]),
    }
    with db.connection() as connection:
        with connection.pipeline():
            ended = connection.execute(queries.END, values)
            connection.execute(queries.WAKE)
        rows = ended.fetchall()
    if len(rows) < len(endings):
        rows += db.all(queries.ENDED_BEFORE, values)
    return {(row["batch_id"], row["ord"], row["attempt"]): row["state"] for row in rows}


def reap(db: Database, session_ids: Sequence[str], *, crashed: bool, started: bool = True) -> int:
    """REAP or BURY what sessions hold; ``crashed`` when they ended without a word.

    ``started=False`` leaves them what they have started: they may end it.
    """
    error = {
        "class": "worker",
        "title": "Worker lost",
        "detail": "The worker died while it made this image.",
        "remedy": "If it happens again, look at the worker's log; the job may be at fault.",
    }
    values = {
        "session_ids": list(session_ids),
        "crashed": crashed,
        "started": started,
        "fatal": FATAL_CRASHES,
        "error": Jsonb(error),
    }
    return len(db.all(queries.REAP, values))


def unstarted(db: Database, *, older_than: float) -> list[Overdue]:
    """Leases published over ``older_than`` seconds ago that no live session has started.

    Each time that they were published again doubles the seconds.
    """
    rows = db.all(
        """SELECT l.batch_id, l.ord, l.attempt, l.session_id, l.publishes,
                  s.state = 'draining' AS draining
           FROM leases l JOIN sessions s ON s.id = l.session_id
           WHERE l.started_at IS NULL AND s.ended_at IS NULL
             AND l.published_at < now() - make_interval(secs => %(seconds)s * 2 ^ (publishes - 1))
        """,
        {"seconds": older_than},
    )
    return [
        Overdue(
            Lease(row["batch_id"], row["ord"], row["attempt"], row["session_id"]),
            row["publishes"],
            row["draining"],
        )
        for row in rows
    ]


def republished(db: Database, leases: Sequence[Lease]) -> None:
    """Note that these were published once more."""
    with db.connection() as connection:
        connection.cursor().executemany(
            """UPDATE leases SET published_at = now(), publishes = publishes + 1
               WHERE batch_id = %(batch_id)s AND ord = %(ord)s AND attempt = %(attempt)s""",
            [lease._asdict() for lease in leases],
        )

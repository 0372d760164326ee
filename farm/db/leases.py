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


class Returned(NamedTuple):
    """An attempt that was taken back from its session; whether it had begun."""

    batch_id: int
    ord: int
    attempt: int
    started: bool


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
    """Jobs to lease to a session: ``count`` from number ``first`` on that nobody has claimed, or
    these ``ords`` of the requeue."""

    batch_id: int
    session_id: str
    count: int = 0
    first: int = 0
    ords: Sequence[int] = ()

    @property
    def jobs(self) -> Sequence[int]:
        return self.ords or range(self.first, self.first + self.count)


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
    """CLAIM: lease jobs to sessions, all in one transaction; in the order of the claims, which ask
    for no job twice."""
    if not claims:
        return []
    heads = [one for one in claims if not one.ords]
    together = {
        "batch_ids": [one.batch_id for one in heads],
        "session_ids": [one.session_id for one in heads],
        "firsts": [one.first for one in heads],
        "counts": [one.count for one in heads],
    }
    wanted: list[tuple[str, dict[str, Any]]] = [(queries.CLAIM, together)] if heads else []
    wanted += [
        (queries.RECLAIM, {**vars(one), "ords": list(one.ords)}) for one in claims if one.ords
    ]
    with db.connection() as connection, connection.pipeline():
        answers = [connection.execute(*each) for each in wanted]
    placed = [Lease(**row) for answer in answers for row in answer]
    order = {(one.batch_id, ord): place for place, one in enumerate(claims) for ord in one.jobs}
    return sorted(placed, key=lambda lease: (order[lease.batch_id, lease.ord], lease.ord))


def set_aside(db: Database, batch_id: int, *, spans: int, jobs: int) -> int:
    """SET ASIDE the shortest so many spans of unclaimed jobs, or fewer; how many jobs.

    Args:
        jobs: that there are in them at most.
    """
    values = {"batch_id": batch_id, "spans": spans, "jobs": jobs}
    with db.connection() as connection:
        return connection.execute(queries.SET_ASIDE, values).rowcount


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
            connection.execute(queries.WAKE_FOR_PLACE)
        rows = ended.fetchall()
    if len(rows) < len(endings):
        rows += db.all(queries.ENDED_BEFORE, values)
    return {(row["batch_id"], row["ord"], row["attempt"]): row["state"] for row in rows}


def reap(
    db: Database, session_ids: Sequence[str], *, crashed: bool, started: bool = True
) -> list[Returned]:
    """REAP or BURY what sessions hold; ``crashed`` when they ended without a word.

    ``started=False`` leaves them what they have started: they may end it. What is being started or
    ended at this moment stays.
    """
    query = queries.REAP if started else queries.REAP_UNSTARTED
    told = "The worker died while it made this image."
    values = {"session_ids": list(session_ids), **_lost("Worker lost", told, crashed=crashed)}
    return [Returned(**row) for row in db.all(query, values)]


def reap_forgotten(db: Database, *, slack: float) -> list[Returned]:
    """REAP or BURY what live sessions have started and do not make any more.

    Args:
        slack: seconds by which it must be older than all that they do make.
    """
    told = "The worker did not say how this attempt ended, and makes it no more."
    values = {"slack": slack, **_lost("Attempt lost", told, crashed=True)}
    return [Returned(**row) for row in db.all(queries.REAP_FORGOTTEN, values)]


def _lost(title: str, detail: str, *, crashed: bool) -> dict[str, Any]:
    error = {
        "class": "worker",
        "title": title,
        "detail": detail,
        "remedy": "If it happens again, look at the worker's log; the job may be at fault.",
    }
    return {"crashed": crashed, "fatal": FATAL_CRASHES, "error": Jsonb(error)}


def flag_unwanted(db: Database) -> None:
    """Have the workers told of all that is in flight of cancelled batches."""
    with db.connection() as connection:
        connection.execute(queries.FLAG, {"batch_id": None})


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


# What is being started needs no note.
_REPUBLISHED = """
UPDATE leases l SET published_at = now(), publishes = publishes + 1
FROM (SELECT f.batch_id, f.ord
      FROM leases f JOIN unnest(%(batch_ids)s::bigint[], %(ords)s::bigint[], %(attempts)s::int[])
           AS p (batch_id, ord, attempt) USING (batch_id, ord, attempt)
      WHERE f.started_at IS NULL FOR UPDATE OF f SKIP LOCKED) found
WHERE l.batch_id = found.batch_id AND l.ord = found.ord
"""


def republished(db: Database, leases: Sequence[Lease]) -> None:
    """Note that these were published once more."""
    batch_ids, ords, attempts, _ = map(list, zip(*leases, strict=True))
    with db.connection() as connection:
        connection.execute(
            _REPUBLISHED, {"batch_ids": batch_ids, "ords": ords, "attempts": attempts}
        )

"""Sessions: the lives of workers, kept by heartbeats that only Postgres's clock judges."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from farm.db import queries, usage
from farm.db.database import Connection, Database
from farm.db.usage import Spent

_BY_NAME = 0x73657373

_OPEN = """
INSERT INTO sessions (id, worker, host, pid, device, profile, capacity, fits, tags, lease_until,
                      state)
VALUES (%(id)s, %(worker)s, %(host)s, %(pid)s, %(device)s, %(profile)s, %(capacity)s,
        %(fits)s, %(tags)s, now() + make_interval(secs => %(lease)s),
        CASE WHEN EXISTS (SELECT FROM quarantines WHERE host = %(host)s AND worker = %(worker)s
                          AND ended_at IS NULL) THEN 'quarantined' ELSE 'live' END)
RETURNING date_trunc('hour', now(), 'UTC')::text AS hour
"""

_SUCCEED = """
UPDATE sessions SET lease_until = 'epoch'
WHERE worker = %(worker)s AND host = %(host)s AND id <> %(id)s AND ended_at IS NULL
"""

_BEAT = """
UPDATE sessions
SET lease_until = now() + make_interval(secs => %(lease)s), resident = %(resident)s,
    stats = %(stats)s, beat_at = now()
WHERE id = %(id)s AND ended_at IS NULL
RETURNING state, date_trunc('hour', now(), 'UTC')::text AS hour
"""

# SKIP LOCKED: who is telling that it lives, or being told something, is judged a second later.
_EXPIRE = f"""
WITH gone AS (
    UPDATE sessions SET state = 'dead', ended_at = now()
    WHERE id IN (
        SELECT id FROM sessions
        WHERE ended_at IS NULL
          AND (lease_until = 'epoch' OR id = ANY(%(ids)s)
               OR %(overdue)s AND lease_until < now())
        FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING *
{usage.LOSE}
SELECT id FROM gone
"""

_LIVE = """
SELECT s.id, s.worker, s.host, s.pid, s.device, s.profile, s.capacity, s.state, s.resident,
       s.stats, s.started_at, s.lease_until, s.tags, coalesce(l.running, 0) AS running,
       coalesce(l.assigned, 0) AS assigned
FROM sessions s
LEFT JOIN (
    SELECT session_id, count(started_at) AS running, count(*) - count(started_at) AS assigned
    FROM leases GROUP BY session_id) l ON l.session_id = s.id
WHERE s.ended_at IS NULL
ORDER BY s.worker, s.id
"""


@dataclass(frozen=True)
class NewSession:
    """A session to open: whose it is, on what, and how many jobs it may hold.

    Attributes:
        fits: see :class:`farm.dispatch.fit.Fit`; not read with the others.
        tags: that batches may ask for.
    """

    id: str
    worker: str
    host: str
    pid: int
    device: dict[str, Any]
    profile: str
    capacity: int
    fits: dict[str, Any] = field(default_factory=dict, kw_only=True)
    tags: list[str] = field(default_factory=list, kw_only=True)


@dataclass(frozen=True)
class Answer:
    """What a session hears in answer to a heartbeat.

    Attributes:
        state: ``live``, or why it gets no jobs.
        unwanted: (batch, ord, attempt) of its jobs that their owners want stopped.
        hour: it is, by Postgres's clock.
    """

    state: str
    unwanted: list[tuple[int, int, int]]
    hour: str


@dataclass(frozen=True)
class Session(NewSession):
    """A session that has not ended; ``state`` is ``live``, ``draining`` or ``quarantined``."""

    state: str
    resident: list[str]
    stats: dict[str, Any]
    started_at: datetime
    lease_until: datetime
    running: int
    assigned: int

    @property
    def card(self) -> str:
        """What the speed of its card is known by."""
        return str(self.device.get("name", self.profile))

    @property
    def refusal(self) -> str | None:
        """Why it can begin no job now, as it told with its last heartbeat."""
        return self.stats.get("refuses")

    @property
    def takes_jobs(self) -> bool:
        """Whether it may be given any."""
        return self.state == "live" and not self.refusal


def open(db: Database, session: NewSession, *, lease: float) -> str:
    """Begin a session; one with the same worker name on the same host is over at once.

    A supervisor starts a worker again only when its process is gone, so its jobs need not
    wait for the old lease to run out. Were it still alive, the fence would hold.

    Returns:
        The hour it is, by Postgres's clock.
    """
    told = {"device": Jsonb(session.device), "fits": Jsonb(session.fits)}
    values = {**vars(session), **told, "lease": lease}
    with db.connection() as connection:
        one_by_one(connection, session.worker)
        connection.execute(_SUCCEED, values)
        row = connection.execute(_OPEN, values).fetchone()
        connection.execute(queries.WAKE)
    assert row is not None
    return str(row["hour"])


def beat(
    db: Database,
    id: str,
    *,
    lease: float,
    resident: Sequence[str],
    stats: dict[str, Any],
    spent: Iterable[Spent] = (),
) -> Answer | None:
    """Extend the lease, and write what seconds were spent on; None when the session is over."""
    values = {"id": id, "lease": lease, "resident": list(resident), "stats": Jsonb(stats)}
    with db.connection() as connection:
        # A heartbeat lost in a server crash costs nothing, so it need not wait for the disk.
        connection.execute("SET LOCAL synchronous_commit = off")
        row = connection.execute(_BEAT, values).fetchone()
        if row is None:
            return None
        unwanted = connection.execute(
            """SELECT batch_id, ord, attempt FROM leases
               WHERE session_id = %(id)s AND cancel_requested""",
            values,
        ).fetchall()
        usage.record(connection, id, spent)
    jobs = [(job["batch_id"], job["ord"], job["attempt"]) for job in unwanted]
    return Answer(row["state"], jobs, row["hour"])


def drain(db: Database, id: str) -> None:
    """Give the session no more jobs."""
    with db.connection() as connection:
        connection.execute(
            """UPDATE sessions SET state = 'draining'
               WHERE id = %s AND state IN ('live', 'quarantined')""",
            (id,),
        )


def drain_worker(db: Database, worker: str) -> int:
    """Give a worker no more jobs until :func:`farm.db.health.resume`; how many sessions it has."""
    with db.connection() as connection:
        one_by_one(connection, worker)
        changed = connection.execute(
            "UPDATE sessions SET state = 'draining' WHERE worker = %s AND ended_at IS NULL",
            (worker,),
        ).rowcount
        connection.execute(queries.WAKE)
    return changed


def tag(db: Database, worker: str, *, add: Sequence[str], remove: Sequence[str]) -> int:
    """Give the sessions of a worker tags, and take some; how many sessions it has."""
    with db.connection() as connection:
        one_by_one(connection, worker)
        changed = connection.execute(
            """UPDATE sessions
               SET tags = ARRAY(SELECT DISTINCT tag FROM unnest(tags || %(add)s::text[]) tag
                                WHERE NOT tag = ANY (%(remove)s) ORDER BY tag)
               WHERE worker = %(worker)s AND ended_at IS NULL""",
            {"worker": worker, "add": list(add), "remove": list(remove)},
        ).rowcount
        connection.execute(queries.WAKE)
    return changed


def close(db: Database, id: str, *, spent: Iterable[Spent] = ()) -> None:
    """End the session in good order; what it still holds goes back to the queue."""
    with db.connection() as connection:
        closed = connection.execute(
            """UPDATE sessions SET state = 'closed', ended_at = now(), lease_until = now()
               WHERE id = %s AND ended_at IS NULL""",
            (id,),
        )
        if closed.rowcount:  # else its death was booked already
            usage.record(connection, id, spent)
        connection.execute(queries.WAKE)


def one_by_one(connection: Connection, worker: str) -> None:
    """Let what is decided by a worker's name be decided one after the other, to the end of the
    transaction: a statement that quarantines it does not see a session that is being opened, nor
    that session's statement the quarantine. It also keeps them from waiting for each other.
    """
    connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_BY_NAME, worker))


def expire(db: Database, *, overdue: bool = True, ids: Sequence[str] = ()) -> list[str]:
    """End sessions that have a successor, these ``ids``, and those whose heartbeat is ``overdue``;
    their ids."""
    return [row["id"] for row in db.all(_EXPIRE, {"overdue": overdue, "ids": list(ids)})]


def die(db: Database, id: str, *, error: dict[str, str]) -> None:
    """End a session whose process is about to; ``error`` becomes that of what it had begun."""
    with db.connection() as connection:
        connection.execute(
            """UPDATE sessions SET stats = stats || jsonb_build_object('died_of', %s::jsonb)
               WHERE id = %s AND ended_at IS NULL""",
            (Jsonb(error), id),
        )
        connection.execute(_EXPIRE, {"overdue": False, "ids": [id]})
        connection.execute(queries.WAKE)


def left_behind(db: Database) -> dict[bool, list[str]]:
    """Ended sessions with leases still to their name, by whether they ended without a word."""
    rows = db.all(
        """SELECT s.id, s.state = 'dead' AS crashed
           FROM (SELECT DISTINCT session_id FROM leases) l
           CROSS JOIN LATERAL (SELECT * FROM sessions WHERE id = l.session_id
                               AND ended_at IS NOT NULL OFFSET 0) s"""
    )
    found: dict[bool, list[str]] = {}
    for row in rows:
        found.setdefault(row["crashed"], []).append(row["id"])
    return found


def live(db: Database) -> list[Session]:
    """Every session that has not ended, by worker name."""
    return [Session(**row) for row in db.all(_LIVE)]


def fits(db: Database) -> dict[str, dict[str, Any]]:
    """What each session that has not ended says of its card, by id."""
    rows = db.all("SELECT id, fits FROM sessions WHERE ended_at IS NULL")
    return {row["id"]: row["fits"] for row in rows}

"""Loading: a batch whose jobs are streamed in, and which nobody sees before it is complete.

Rows are committed chunk by chunk, so that a slow upload never keeps a transaction open: that would
keep Postgres from tidying up behind the queue. A batch that is not completed is left to
:mod:`farm.db.retention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg.types.json import Jsonb

from farm.db import inputs, queries, quotas
from farm.db.batches import Accepted, NewBatch, accepted_before
from farm.db.database import Connection, Database
from farm.errors import Unavailable
from farm.spec.job import JobSpec

PATIENCE = 600.0
"""Seconds without a chunk after which an upload is given up."""

_BEGIN = """
INSERT INTO batches (user_id, name, priority, total, state, loading_until)
VALUES (%(user_id)s, '', 0, 1, 'loading', now() + make_interval(secs => %(patience)s))
RETURNING id
"""

# What has come so far counts as waiting.
_GO_ON = """
UPDATE batches SET loading_until = now() + make_interval(secs => %(patience)s), total = %(total)s
WHERE id = %(id)s AND state = 'loading' RETURNING user_id
"""

# Its jobs have waited from now on, not from the first line.
_COMPLETE = """
UPDATE batches
SET state = 'open', loading_until = NULL, created_at = now(), name = %(name)s,
    priority = %(priority)s, tags = %(tags)s, output = %(output)s, total = %(total)s,
    idempotency_key = %(key)s, request_hash = %(hash)s
WHERE id = %(id)s AND state = 'loading' RETURNING id
"""

_DISCARD = """
UPDATE batches SET state = 'pruned', ended_at = now(), loading_until = NULL
WHERE id = %(id)s AND state = 'loading'
"""


def begin(db: Database, user_id: int) -> int:
    """A batch that takes jobs; its number."""
    row = db.one(_BEGIN, {"user_id": user_id, "patience": PATIENCE})
    assert row is not None
    return int(row["id"])


def append(
    db: Database, batch_id: int, first: int, jobs: Sequence[JobSpec], *, quota: int | None = None
) -> None:
    """The next jobs of it, from number ``first`` on.

    Args:
        quota: see :func:`farm.db.batches.accept`.

    Raises:
        Unavailable: it was given up meanwhile.
        QuotaExceeded: with these, too many jobs of the user would wait.
    """
    total = first + len(jobs)
    with db.connection() as connection:
        user_id = _go_on(connection, batch_id, total)
        inputs.store(connection, batch_id, jobs, first=first)
        # At the end: others of this user wait from here on.
        if quota is not None:
            quotas.check(connection, user_id, most=quota, added=len(jobs), earlier=first)


def complete(db: Database, batch_id: int, batch: NewBatch, *, total: int) -> Accepted:
    """Let everybody see the batch, and wake the dispatcher.

    With an idempotency key that was used meanwhile, the batch that has it counts, and this one is
    discarded.

    Raises:
        Conflict: that one is of another request.
        Unavailable: it was given up meanwhile.
    """
    values = {
        "id": batch_id,
        "name": batch.name,
        "priority": batch.priority,
        "tags": list(batch.tags),
        "output": Jsonb(batch.output.model_dump()),
        "total": total,
        "key": batch.idempotency_key,
        "hash": batch.request_hash,
    }
    try:
        with db.connection() as connection:
            if connection.execute(_COMPLETE, values).fetchone() is None:
                raise _given_up()
            connection.execute(queries.WAKE)
    except psycopg.errors.UniqueViolation:
        discard(db, batch_id)
        with db.connection() as connection:
            return accepted_before(connection, batch)
    return Accepted(batch_id, created=True)


def used(db: Database, user_id: int, key: str) -> bool:
    """Whether the user has a batch by that idempotency key."""
    row = db.one(
        "SELECT 1 FROM batches WHERE user_id = %(user)s AND idempotency_key = %(key)s",
        {"user": user_id, "key": key},
    )
    return row is not None


def repeated(db: Database, batch: NewBatch) -> Accepted:
    """The batch by the idempotency key of this one; Conflict if that was another request."""
    with db.connection() as connection:
        return accepted_before(connection, batch)


def discard(db: Database, batch_id: int) -> None:
    """Nobody will ever see it; its rows go in time."""
    with db.connection() as connection:
        connection.execute(_DISCARD, {"id": batch_id})


def _go_on(connection: Connection, batch_id: int, total: int) -> int:
    """Its user."""
    values = {"id": batch_id, "patience": PATIENCE, "total": total}
    row = connection.execute(_GO_ON, values).fetchone()
    if row is None:
        raise _given_up()
    return int(row["user_id"])


def _given_up() -> Unavailable:
    return Unavailable(
        f"The upload was given up: nothing came for {PATIENCE:.0f} s.", remedy="Send it again."
    )

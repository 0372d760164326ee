"""Users and their API keys."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace
from typing import Any

from farm.db.database import Database
from farm.db.spans import COUNT
from farm.errors import InvalidInput, NotFound
from farm.spec.batch import INTERACTIVE_FROM, NORMAL_FROM


@dataclass(frozen=True)
class User:
    """Attributes:
    admin: may change what is not theirs: batches of others, shares, what workers hold.
    max_in_flight: most jobs in flight at once; None for any number, 0 for none.
    """

    id: int
    name: str
    admin: bool = False
    max_in_flight: int | None = None


LOCAL = "local"

WINDOW = 600.0
"""Seconds over which shares are compared."""

_FIND = "SELECT id, name, admin, max_in_flight FROM users WHERE name = %(name)s"

# The update of nothing makes the conflicting row come back, whichever process was first. It waits
# for who has the row, and so is not how one looks for a user.
_ENSURE = """
INSERT INTO users (name) VALUES (%(name)s)
ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id, name, admin, max_in_flight
"""

_SHARE = """
UPDATE users
SET weight = coalesce(%(weight)s, weight),
    max_in_flight = CASE WHEN %(uncap)s THEN NULL ELSE coalesce(%(cap)s, max_in_flight) END,
    max_waiting = CASE WHEN %(unquota)s THEN NULL ELSE coalesce(%(quota)s, max_waiting) END
WHERE name = %(name)s
RETURNING name, weight, max_in_flight, max_waiting, admin
"""

_SHARES = """
SELECT u.name, u.weight, u.max_in_flight, u.max_waiting, u.admin,
       coalesce(b.waiting, 0)::bigint AS waiting, b.longest_wait,
       coalesce(b.throughout AND u.max_in_flight IS NULL, false) AS throughout,
       coalesce(h.seconds, 0) AS gpu_seconds, h.median_wait
FROM users u LEFT JOIN (
    SELECT user_id, sum({waiting}) AS waiting,
           extract(epoch FROM now() - min(created_at) FILTER (WHERE {begun}))::float
               AS longest_wait,
           bool_or({begun} AND priority >= %(normal)s AND priority < %(interactive)s
                   AND created_at < now() - make_interval(secs => %(seconds)s)) AS throughout
    FROM batches b
    WHERE ended_at IS NULL AND state IN ('loading', 'open', 'paused') GROUP BY user_id
) b ON b.user_id = u.id
LEFT JOIN (
    SELECT m.user_id, sum(a.gpu_seconds::float) AS seconds,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY a.queue_seconds) AS median_wait
    FROM attempts a JOIN batches m ON m.id = a.batch_id
    WHERE a.ended_at > now() - make_interval(secs => %(seconds)s) GROUP BY m.user_id
) h ON h.user_id = u.id
ORDER BY u.name
""".format(waiting=COUNT, begun="state = 'open' AND cursor < total")


def local(db: Database) -> User:
    """The only user of a local farm, whose it all is."""
    return replace(_ensure(db, LOCAL), admin=True)


def create_key(db: Database, name: str, *, admin: bool = False) -> str:
    """A new API key for user ``name``, who is created at need. It cannot be shown again.

    Args:
        admin: make the user an administrator; who is one stays one.
    """
    if not name.strip() or len(name) > 100 or not name.isprintable():
        raise InvalidInput(
            f"name: {name[:100]!r} cannot be a user's name.",
            field="name",
            value=name,
            remedy="Use 1 to 100 characters that can be printed.",
        )
    key = "farm_" + secrets.token_urlsafe(32)
    user = _ensure(db, name)
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO api_keys (sha256, user_id) VALUES (%s, %s)", (_digest(key), user.id)
        )
        if admin:
            connection.execute("UPDATE users SET admin = true WHERE id = %s", (user.id,))
    return key


def revoke_keys(db: Database, name: str) -> int:
    """Withdraw all API keys of a user, whose batches stay; how many there were.

    Raises:
        NotFound: there is no such user.
    """
    user = db.one(_FIND, {"name": name}) if name.isprintable() else None
    if user is None:
        raise _nobody(name)
    with db.connection() as connection:
        return connection.execute("DELETE FROM api_keys WHERE user_id = %(id)s", user).rowcount


def for_key(db: Database, key: str) -> User | None:
    """The user who holds ``key``; None when nobody does."""
    row = db.one(
        """SELECT u.id, u.name, u.admin, u.max_in_flight
           FROM api_keys k JOIN users u ON u.id = k.user_id
           WHERE k.sha256 = %(digest)s""",
        {"digest": _digest(key)},
    )
    return User(**row) if row else None


def shares(db: Database, *, seconds: float = WINDOW) -> list[dict[str, Any]]:
    """Every user's part of the farm, what waits of theirs, and what they had of late; by name.

    Beside weight, cap and quota: ``waiting`` jobs; ``longest_wait``, seconds since the oldest batch
    came of which an open job waits, None for none; of attempts that ended in the last ``seconds``
    the ``gpu_seconds`` and the ``median_wait``, seconds from their batches' coming to their start;
    and ``throughout``, whether a normal job of theirs has waited for all of that time, and no cap
    kept it.
    """
    values = {"seconds": seconds, "normal": NORMAL_FROM, "interactive": INTERACTIVE_FROM}
    return db.all(_SHARES, values)


def set_share(
    db: Database,
    name: str,
    *,
    weight: float | None = None,
    cap: int | None = None,
    uncap: bool = False,
    quota: int | None = None,
    unquota: bool = False,
) -> dict[str, Any]:
    """Change a user's part of the farm; what is None stays.

    Args:
        weight: relative to other users, above 0 and at most 1000.
        cap: most jobs in flight at once.
        uncap: take the cap away.
        quota: most jobs that may wait to be begun.
        unquota: what the farm allows everybody counts again.

    Raises:
        NotFound: there is no such user.
    """
    values = {
        "name": name,
        "weight": weight,
        "cap": cap,
        "uncap": uncap,
        "quota": quota,
        "unquota": unquota,
    }
    row = db.one(_SHARE, values)
    if row is None:
        raise _nobody(name)
    return row


def _nobody(name: str) -> NotFound:
    return NotFound(
        f"There is no user {name[:100]}.",
        field="user",
        value=name,
        remedy="`farm share` lists them; `farm key NAME` makes one.",
    )


def _ensure(db: Database, name: str) -> User:
    values = {"name": name}
    row = db.one(_FIND, values) or db.one(_ENSURE, values)
    assert row is not None
    return User(**row)


def _digest(key: str) -> bytes:
    # Keys are 256 random bits, so a plain hash is enough: there is nothing to guess.
    return hashlib.sha256(key.encode()).digest()

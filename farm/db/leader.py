"""Who leads: an advisory lock, and a row with an epoch and a heartbeat.

The lock goes with its connection, so a leader that dies is followed at once. One that is frozen,
or behind a broken link, keeps its connections: when its heartbeat is overdue a standby ends them.
What one writes never follows what its successor writes: a transaction of a leader holds off the
next epoch, and none of an earlier epoch can begin.
"""

from __future__ import annotations

from farm.db.database import LEADERSHIP, Connection

_LOCK = 0x6C656164

_TAKE = """
INSERT INTO leader AS l (epoch, name, heartbeat)
SELECT 1, %(name)s, now()
WHERE CASE WHEN pg_try_advisory_lock(%(lock)s) THEN pg_try_advisory_xact_lock(%(fence)s) END
ON CONFLICT (single) DO UPDATE
SET epoch = l.epoch + 1, name = excluded.name, heartbeat = now()
RETURNING epoch
"""

_BEAT = "UPDATE leader SET heartbeat = now() WHERE epoch = %(epoch)s RETURNING epoch"

# All of them, not only the one with the lock: none of its transactions may outlive it.
_OUST = """
SELECT a.pid, l.name, pg_terminate_backend(a.pid) AS ended
FROM leader l JOIN pg_stat_activity a ON a.application_name = l.name
WHERE l.heartbeat < now() - make_interval(secs => %(seconds)s) AND a.pid <> pg_backend_pid()
"""


def take(connection: Connection, name: str) -> int | None:
    """Lead, if nobody else does and no transaction of the one before is under way: the new epoch.
    It lasts as long as the connection.

    Args:
        name: application name of all connections of this dispatcher, and of no other.
    """
    row = connection.execute(_TAKE, {"name": name, "lock": _LOCK, "fence": LEADERSHIP}).fetchone()
    return row["epoch"] if row else None


def beat(connection: Connection, epoch: int) -> bool:
    """Say that the leader is well; False if another leads by now."""
    return connection.execute(_BEAT, {"epoch": epoch}).fetchone() is not None


def oust(connection: Connection, *, seconds: float) -> str | None:
    """End the connections of a leader that was not heard of for so long; its name, if there is
    one."""
    rows = connection.execute(_OUST, {"seconds": seconds}).fetchall()
    return str(rows[0]["name"]) if rows else None

"""What a migration may do to a table that a farm works on.

Who wants a table for itself holds up all who come after, so nothing here keeps one for longer than
it takes to write a line into the catalogue. Each can be done again where it was cut off.
"""

from __future__ import annotations

import time

from alembic import op

from farm.errors import SetupError

_PATIENCE = "10min"
"""For transactions that were there before: an index that is built beside the work waits for them,
and nobody waits for it."""

_STOPPING = 60.0
"""Seconds for workers to stop, and for the leases of dead ones to run out."""
# Not now(), which is when the migration's transaction began.
_LIVE = """
SELECT string_agg(worker || ' on ' || host, ', ' ORDER BY worker, host) FROM sessions
WHERE ended_at IS NULL AND lease_until > clock_timestamp()
"""


def index(name: str, definition: str) -> None:
    """Build an index while everybody writes.

    What was done before in the same migration is committed: it must be possible to do it again.

    Args:
        definition: what follows ``ON``.
    """
    with op.get_context().autocommit_block():
        told = op.get_bind().exec_driver_sql("SHOW lock_timeout").scalar_one()
        op.execute(f"SET lock_timeout = '{_PATIENCE}'")
        try:
            # One that was cut off is there, and of no use.
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
            op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
        finally:
            op.execute(f"SET lock_timeout = '{told}'")


def check(table: str, name: str, condition: str) -> None:
    """Let a table have a check, in place of an earlier one of that name: new rows at once, those
    that are there while everybody writes."""
    op.execute(
        f"""ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name},
                ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID"""
    )
    with op.get_context().autocommit_block():
        op.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")


def wait_for_workers_to_stop() -> None:
    """Go on when no worker is at work: for what those of the version before cannot live with.

    Raises:
        SetupError: they do not stop.
    """
    until = time.monotonic() + _STOPPING
    while live := op.get_bind().exec_driver_sql(_LIVE).scalar():
        if time.monotonic() > until:
            raise SetupError(
                f"This upgrade cannot be made beside workers, and some are at work: {live}.",
                remedy="Stop all workers, run `farm migrate`, and start those of the new version.",
            )
        time.sleep(1.0)

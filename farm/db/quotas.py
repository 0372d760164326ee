"""Quotas: how many jobs of a user may wait to be begun, lest one fill the farm's database.

What waits is not counted with each submission: all that came since the last count is added to it,
and nothing taken off for what was begun. That is never less than what waits, so it is counted anew
only where it says that too much does; then it is exact.
"""

from __future__ import annotations

from farm.db.database import Connection
from farm.db.spans import COUNT
from farm.errors import QuotaExceeded

COUNTED = 3600.0
"""Seconds for which a count holds: what an API of an earlier version took in was not added."""

# Submissions of a user have this row one after the other; nobody else's wait.
_ADD = """
UPDATE users SET waiting_most = waiting_most + %(added)s WHERE id = %(user_id)s
RETURNING name, coalesce(max_waiting, %(most)s) AS most, waiting_most AS waiting,
          coalesce(counted_at > now() - make_interval(secs => %(counted)s), false) AS counted
"""

_COUNT = f"""
UPDATE users u
SET counted_at = now(),
    waiting_most = coalesce((SELECT sum({COUNT}) FROM batches b
                             WHERE b.user_id = u.id AND b.ended_at IS NULL
                               AND b.state IN ('loading', 'open', 'paused')), 0)
WHERE u.id = %(user_id)s RETURNING waiting_most AS waiting
"""


def check(connection: Connection, user_id: int, *, most: int, added: int, earlier: int = 0) -> None:
    """Refuse a transaction that has just stored ``added`` jobs if more wait now than may.

    Two at once cannot both pass: the second waits until the first is committed or undone.

    Args:
        most: what the farm allows a user for whom nothing else was said.
        earlier: jobs of the same upload that transactions before this one have stored.

    Raises:
        QuotaExceeded: names the quota, and what is used of it.
    """
    values = {"user_id": user_id, "most": most, "added": added, "counted": COUNTED}
    row = connection.execute(_ADD, values).fetchone()
    assert row is not None
    waiting = row["waiting"]
    if waiting > row["most"] or not row["counted"]:
        counted = connection.execute(_COUNT, values).fetchone()
        assert counted is not None
        waiting = counted["waiting"]
    if waiting > row["most"]:
        more = added + earlier
        raise QuotaExceeded(
            f"The quota of {row['name']}'s waiting jobs is {row['most']}: {waiting - more} wait, "
            f"and these would be {more} more.",
            field="quota",
            value=waiting,
            remedy="Submit it when some have been made, cancel what is not needed any more "
            f"(farm ls), or ask an administrator: farm share {row['name']} --quota N.",
        )

"""Quotas: how many jobs of a user may wait to be begun, lest one fill the farm's database."""

from __future__ import annotations

from farm.db.database import Connection
from farm.errors import QuotaExceeded

# Submissions of a user are counted one after the other; nobody else's wait.
_ONE_BY_ONE = "SELECT FROM users WHERE id = %(user_id)s FOR NO KEY UPDATE"

_WAITING = """
SELECT u.name, coalesce(u.max_waiting, %(most)s) AS most,
       coalesce((SELECT sum(b.total - b.cursor) FROM batches b
                 WHERE b.user_id = u.id AND b.ended_at IS NULL
                   AND b.state IN ('loading', 'open', 'paused')), 0)::bigint AS waiting
FROM users u WHERE u.id = %(user_id)s
"""


def check(connection: Connection, user_id: int, *, most: int, added: int) -> None:
    """Refuse a transaction that has just stored ``added`` jobs if more wait now than may.

    Two at once cannot both pass: the second counts what the first has committed.

    Args:
        most: what the farm allows a user for whom nothing else was said.

    Raises:
        QuotaExceeded: names the quota, and what is used of it.
    """
    values = {"user_id": user_id, "most": most}
    with connection.pipeline():
        connection.execute(_ONE_BY_ONE, values)
        found = connection.execute(_WAITING, values)
    row = found.fetchone()
    assert row is not None
    if row["waiting"] > row["most"]:
        before = row["waiting"] - added
        raise QuotaExceeded(
            f"The quota of {row['name']}'s waiting jobs is {row['most']}: {before} wait, and these "
            f"would be {added} more.",
            field="quota",
            value=row["waiting"],
            remedy="Submit it when some have been made, cancel what is not needed any more "
            f"(farm ls), or ask an administrator: farm share {row['name']} --quota N.",
        )

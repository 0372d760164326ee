"""Waiting for work, and the lock of the leading dispatcher, on one dedicated connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from farm.db import queries
from farm.db.database import Connection, dedicated
from farm.errors import Unavailable

_LEADER = 0x6C656164


class Listener:
    """One connection that listens for work and may hold the leader's lock."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def try_lead(self) -> bool:
        """Take the leader's lock if it is free; it is held as long as the connection."""
        row = self._connection.execute(
            "SELECT pg_try_advisory_lock(%s) AS taken", (_LEADER,)
        ).fetchone()
        return bool(row and row["taken"])

    def wait(self, seconds: float) -> None:
        """Wait until somebody submits work or frees a place, at most ``seconds``."""
        try:
            for _ in self._connection.notifies(timeout=seconds, stop_after=1):
                pass
        except psycopg.OperationalError as error:
            raise Unavailable(f"Postgres went away: {error}.") from error


@contextmanager
def listener(url: str) -> Iterator[Listener]:
    """A listener on its own connection. Raises Unavailable when Postgres is out of reach."""
    with dedicated(url, name="farm-dispatcher") as connection:
        connection.execute(queries.WAKE.replace("NOTIFY", "LISTEN"))
        yield Listener(connection)

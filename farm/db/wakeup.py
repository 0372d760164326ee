"""Waiting for work, on the connection that holds the leader's lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from farm.db import leader, queries
from farm.db.database import Connection, dedicated
from farm.errors import Unavailable


class Listener:
    """One connection that may hold the leader's lock, and then listens for work.

    Every method raises :class:`farm.errors.Unavailable` when the connection is lost.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name

    def lead(self) -> int | None:
        """The new epoch if nobody else leads; it lasts as long as the connection."""
        with _reachable():
            epoch = leader.take(self._connection, self._name)
            if epoch is not None:
                # Not before: what is heard and not waited for is kept, a standby's for ever.
                self._connection.execute(queries.WAKE.replace("NOTIFY", "LISTEN"))
            return epoch

    def oust(self, *, seconds: float) -> str | None:
        """End a leader that was not heard of for so long; its name, if there is one."""
        with _reachable():
            return leader.oust(self._connection, seconds=seconds)

    def beat(self, epoch: int) -> None:
        """Say that the leader of this epoch is well."""
        with _reachable():
            if not leader.beat(self._connection, epoch):
                raise Unavailable("Another dispatcher leads by now.")

    def wait(self, seconds: float) -> bool:
        """Wait until somebody submits work or frees a place, at most ``seconds``.

        Returns:
            False if all that is known to be new is a free place. Having waited in vain counts as
            news, having not waited does not.
        """
        with _reachable():
            told = list(self._connection.notifies(timeout=seconds, stop_after=1))
        if not told:
            return seconds > 0
        return any(one.payload != queries.PLACE for one in told)


@contextmanager
def listener(url: str, *, name: str) -> Iterator[Listener]:
    """A listener on its own connection. Raises Unavailable when Postgres is out of reach."""
    with dedicated(url, name=name) as connection:
        yield Listener(connection, name)


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except psycopg.OperationalError as error:
        raise Unavailable(f"Postgres went away: {error}.") from error

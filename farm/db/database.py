"""A pool of Postgres connections; the one way in which Farm reaches Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from math import inf
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from farm.errors import Unavailable

Connection = psycopg.Connection[DictRow]

_UNREACHABLE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
)

_PATIENCE = 5.0
_QUIET = 1.0
"""Seconds after which a connection is asked whether it lives before it is used."""
_RECONNECT = 2.0

POOLS = {"api": 16, "dispatcher": 4, "worker": 4}
"""Most connections that a process of a kind has; a dispatcher has one more, for what it hears."""

LEADERSHIP = 0x65706F63
"""Advisory lock: shared by the transactions of a leader, exclusive in the one that follows it."""

_EPOCH = f"SELECT pg_advisory_xact_lock_shared({LEADERSHIP}); SELECT epoch FROM leader"


def describe(url: str) -> str:
    """Where ``url`` points, without its password."""
    parts = psycopg.conninfo.conninfo_to_dict(url)
    return f"{parts.get('host', 'localhost')}/{parts.get('dbname', '')}"


class Database:
    """Connections to one Postgres database, each row a dict.

    Args:
        url: a libpq connection string or URI.
        min_size, max_size: connections kept and allowed.
        name: application_name, seen in pg_stat_activity.
        longest: seconds after which a statement is given up; None for never.
        idle: seconds after which a transaction that asks nothing more is undone; None for never.
            Else a process that is frozen in one keeps what it locked.

    Every method raises :class:`farm.errors.Unavailable` when Postgres is out of reach.
    """

    def __init__(
        self,
        url: str,
        *,
        min_size: int = 1,
        max_size: int = 8,
        name: str = "farm",
        longest: float | None = None,
        idle: float | None = None,
    ) -> None:
        self.url = url
        self.name = name
        self._epoch: int | None = None
        self._heard: WeakKeyDictionary[Connection, float] = WeakKeyDictionary()
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            url,
            min_size=min_size,
            max_size=max_size,
            kwargs=connect_options(name, longest=longest, idle=idle),
            check=self._check,
            timeout=_PATIENCE,
            # Then it begins anew with whoever asks next; it would pause twice as long each time.
            reconnect_timeout=_RECONNECT,
            open=False,
        )
        self._pool.open()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.close(timeout=2)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in a transaction that commits at the end, or rolls back on an error."""
        try:
            with self._pool.connection() as connection:
                if self._epoch is not None:
                    self._check_epoch(connection, self._epoch)
                yield connection
        except _UNREACHABLE as error:
            raise self._unavailable(error) from error

    def all(self, query: str, values: dict[str, Any] | None = None) -> list[DictRow]:
        """Run one statement and give all its rows."""
        with self._alone() as connection:
            return connection.execute(query, values).fetchall()

    def one(self, query: str, values: dict[str, Any] | None = None) -> DictRow | None:
        """Run one statement and give its first row, if any."""
        with self._alone() as connection:
            return connection.execute(query, values).fetchone()

    def check(self) -> None:
        """Raise :class:`Unavailable` unless Postgres answers."""
        self.one("SELECT 1 AS answer")

    def fenced(self, epoch: int) -> Database:
        """The same connections for the leader of ``epoch``.

        Each transaction first makes sure that no other leads by now, and that none can until it
        has ended.
        """
        fenced = copy(self)
        fenced._epoch = epoch
        return fenced

    @contextmanager
    def _alone(self) -> Iterator[Connection]:
        """A connection for one statement, which is a transaction by itself: Postgres is asked once,
        not three times."""
        with self.connection() as connection:
            if self._epoch is not None:
                yield connection  # its first statement was the epoch's
                return
            connection.autocommit = True
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.autocommit = False

    def _check(self, connection: Connection) -> None:
        """Ask a connection that was quiet for a while whether it lives. If it does not, neither do
        the others: the pool would try one after the other, with a longer pause after each."""
        now = time.monotonic()
        if now - self._heard.get(connection, -inf) > _QUIET:
            try:
                ConnectionPool.check_connection(connection)
            except Exception:
                self._pool.drain()
                raise
        self._heard[connection] = now

    def _check_epoch(self, connection: Connection, epoch: int) -> None:
        # Two statements in one message: what the second sees was true once the first had the lock.
        answer = connection.execute(_EPOCH)
        answer.nextset()
        row = answer.fetchone()
        if row is None or row["epoch"] != epoch:
            raise Unavailable("Another dispatcher leads by now.")

    def _unavailable(self, error: Exception) -> Unavailable:
        if isinstance(error, psycopg.errors.QueryCanceled):
            return Unavailable(
                "It would have taken Postgres too long, and was given up.",
                remedy="Ask for less at once, or when the farm has less to do.",
            )
        return Unavailable(
            f"Postgres at {describe(self.url)} does not answer: {error}.".replace("\n", " "),
            remedy="Check that it runs and that FARM_DATABASE_URL is right; Farm keeps trying.",
        )


def connect_options(
    name: str, *, longest: float | None = None, idle: float | None = None
) -> dict[str, Any]:
    """Connection settings of every Farm process: dead peers are noticed within 25 seconds."""
    limits = {"statement_timeout": longest, "idle_in_transaction_session_timeout": idle}
    given_up = "".join(f" -c {key}={most * 1000:.0f}" for key, most in limits.items() if most)
    return {
        "application_name": name,
        "row_factory": dict_row,
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        # Compiling a statement takes longer than any of ours; what it costs is guessed badly where
        # a function says how many rows there are.
        "options": f"-c timezone=UTC -c lock_timeout=5000 -c jit=off{given_up}",
    }


@contextmanager
def dedicated(url: str, *, name: str) -> Iterator[Connection]:
    """One connection outside any pool, in autocommit: for locks and LISTEN."""
    try:
        with psycopg.Connection[DictRow].connect(
            url, autocommit=True, **connect_options(name)
        ) as connection:
            yield connection
    except _UNREACHABLE as error:
        raise Unavailable(f"Postgres at {describe(url)} went away: {error}.") from error

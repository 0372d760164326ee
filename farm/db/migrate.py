"""Brings a database to this version's schema."""

from __future__ import annotations

import time

import psycopg
from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from farm.db.database import describe
from farm.db.schema import MIGRATIONS
from farm.errors import SetupError, Unavailable

_LOCK = 0x6661726D
_OLDEST = 150_000
_LOCK_MS = 500
_PAUSE = 2.0
_TURN = 0.2
_TRIES = 30
_BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


def upgrade(url: str) -> None:
    """Migrate the database at ``url`` to the newest revision; safe to run from many hosts at once.

    Raises:
        Unavailable: no database answers there.
        SetupError: the server is older than Postgres 15, or a newer Farm has migrated it.
    """
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    try:
        connection = engine.connect()
    except Exception as error:
        raise Unavailable(
            f"Postgres at {describe(url)} does not answer: {error}.".replace("\n", " "),
            remedy="Check that it runs, that the database exists and that the URL is right.",
        ) from error
    with connection:
        _check_server(connection.exec_driver_sql("SHOW server_version_num").scalar_one())
        _wait_for_turn(connection)
        # Who waits for a table holds up all who come after, so nobody waits for long.
        connection.execute(text(f"SET lock_timeout = {_LOCK_MS}"))
        connection.commit()
        try:
            _migrate(connection)
        except CommandError as error:
            raise SetupError(
                f"The database at {describe(url)} was migrated by a newer Farm: {error}.",
                remedy="Install that version of Farm, or use another database.",
            ) from error
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
            connection.commit()
    engine.dispose()


def _wait_for_turn(connection: Connection) -> None:
    """Take the lock of those who migrate. Who waited for it in a statement would be waited for by
    an index that the other one builds beside the work."""
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
        connection.commit()
        time.sleep(_TURN)


def _migrate(connection: Connection) -> None:
    """Run what is missing, each migration in a transaction of its own, as soon as it finds a gap
    in the work of a farm that goes on."""
    config = _config()
    config.attributes["connection"] = connection
    for left in reversed(range(_TRIES)):
        try:
            command.upgrade(config, "head")
            connection.commit()
            return
        except OperationalError as error:
            connection.rollback()
            if not isinstance(error.orig, _BUSY):
                raise
            if not left:
                raise Unavailable(
                    f"The database is too busy to be migrated: {error.orig}.",
                    remedy="Look for long transactions in pg_stat_activity, a backup for one.",
                ) from error
            time.sleep(_PAUSE)


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def _check_server(version: str) -> None:
    if int(version) < _OLDEST:
        raise SetupError(
            f"This Postgres is version {int(version) // 10_000}.",
            remedy="Farm needs Postgres 15 or newer.",
        )

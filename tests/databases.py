"""Migrated databases for tests. Emptied, one serves again: to make it takes ten times as long."""

from __future__ import annotations

import itertools
from urllib.parse import urlsplit, urlunsplit

import psycopg

from farm.db import migrate

_TEMPLATE = "farm_template"
_TABLES = """
SELECT relname FROM pg_class
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'
"""
_OTHERS = """
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_SCHEMA = """
SELECT (SELECT version_num FROM alembic_version), (SELECT count(*) FROM pg_attribute),
       (SELECT sum(oid::bigint) FROM pg_class), (SELECT sum(oid::bigint) FROM pg_proc),
       (SELECT sum(oid::bigint) FROM pg_constraint), (SELECT sum(oid::bigint) FROM pg_trigger),
       (SELECT count(*) FROM pg_extension), (SELECT count(*) FROM pg_db_role_setting)
"""
_RESTART = "SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence"


class Databases:
    """The databases of one server, whose administrator's URL is ``server``."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._serial = itertools.count()
        self._emptied: str | None = None
        # Nothing of it need outlive the machine.
        self._administer("ALTER SYSTEM SET fsync = off")
        self._administer("SELECT pg_reload_conf()")
        self._administer(f"CREATE DATABASE {_TEMPLATE}")
        migrate.upgrade(self.url(_TEMPLATE))
        with self._connected(_TEMPLATE) as connection:
            self._tables = [name for (name,) in connection.execute(_TABLES)]
            self._schema = connection.execute(_SCHEMA).fetchone()
            assert self._used(connection) == [], "a migration leaves rows: they must be put back"

    def url(self, name: str) -> str:
        return urlunsplit(urlsplit(self._server)._replace(path=f"/{name}"))

    def make(self, name: str) -> str:
        """A database made anew; its URL."""
        self._administer(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
        return self.url(name)

    def drop(self, name: str) -> None:
        self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    def take(self) -> str:
        """The name of an empty database. None had it before: who is left from another test does
        not find this one."""
        name = f"farm_{next(self._serial)}"
        if self._emptied is None:
            self.make(name)
        else:
            self._administer(f"ALTER DATABASE {self._emptied} RENAME TO {name}")
            self._emptied = None
        return name

    def give_back(self, name: str) -> None:
        """Empty it for the next one, or drop it when its schema is another by now."""
        with self._connected(name) as connection:
            connection.execute(_OTHERS)
            as_it_was = connection.execute(_SCHEMA).fetchone() == self._schema
            if as_it_was:
                self._empty(connection)
        if as_it_was and self._emptied is None:
            self._emptied = name
        else:
            self.drop(name)

    def _empty(self, connection: psycopg.Connection) -> None:
        connection.execute(_RESTART)
        # No triggers: every table that refers to another is emptied as well.
        connection.execute("SET session_replication_role = replica")
        for table in self._used(connection):
            connection.execute(f"DELETE FROM {table}")
            # Else the dead rows would have a say in the order of those to come.
            connection.execute(f"VACUUM {table}")

    def _used(self, connection: psycopg.Connection) -> list[str]:
        each = (f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})" for name in self._tables)
        return [name for (name,) in connection.execute(" UNION ALL ".join(each))]

    def _connected(self, name: str) -> psycopg.Connection:
        return psycopg.connect(self.url(name), autocommit=True)

    def _administer(self, statement: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(statement)

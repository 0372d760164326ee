"""The pool of connections: what is asked of Postgres has an end."""

from __future__ import annotations

import pytest

from farm.db.database import Connection, Database
from farm.errors import Unavailable


def test_a_statement_that_takes_too_long_is_given_up_and_the_next_one_served(db: Database) -> None:
    with Database(db.url, max_size=1, longest=0.1) as hasty:
        with pytest.raises(Unavailable, match="too long, and was given up"):
            hasty.one("SELECT pg_sleep(60)")
        assert hasty.one("SELECT 1 AS answer") == {"answer": 1}


def test_who_is_frozen_in_a_transaction_loses_its_locks_and_what_it_did(db: Database) -> None:
    rename = "UPDATE users SET name = %(name)s WHERE name = 'ann'"
    db.all("INSERT INTO users (name) VALUES ('ann') RETURNING id")
    with (
        Database(db.url, max_size=1, idle=0.1) as frozen,
        pytest.raises(Unavailable),
        frozen.connection() as connection,
    ):
        _renamed_meanwhile(connection, rename, db)
    assert db.one("SELECT name FROM users WHERE name IN ('bea', 'eve')") == {"name": "bea"}


def _renamed_meanwhile(frozen: Connection, rename: str, db: Database) -> None:
    frozen.execute(rename, {"name": "eve"})
    with db.connection() as other:  # waits for the lock, five seconds at most
        assert other.execute(rename, {"name": "bea"}).rowcount == 1
    frozen.execute(rename, {"name": "eve"})

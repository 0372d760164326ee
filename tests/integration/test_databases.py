"""The databases of this suite: whatever a test did to its own, the next finds one as if new."""

from __future__ import annotations

import psycopg
import pytest

from tests.databases import Databases

COUNTED = "SELECT count(*), (SELECT count(*) FROM alembic_version) FROM users"


def names(databases: Databases) -> set[str]:
    with psycopg.connect(databases.url("postgres")) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


@pytest.mark.parametrize(
    ("statement", "kept"),
    [
        ("INSERT INTO users (name) VALUES ('anna')", True),
        ("SELECT nextval('users_id_seq')", True),
        ("CREATE TABLE later (id bigint)", False),
        ("ALTER TABLE users ADD COLUMN later bigint", False),
        ("ALTER TABLE users ADD CHECK (length(name) < 9)", False),
        ("CREATE INDEX ON users (created_at)", False),
        ("CREATE EXTENSION pg_walinspect", False),
        ("UPDATE alembic_version SET version_num = '0001'", False),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", False),
    ],
)
def test_the_next_finds_one_as_if_new(databases: Databases, statement: str, kept: bool) -> None:
    first = databases.take()
    left = psycopg.connect(databases.url(first), autocommit=True)
    left.execute(statement)
    databases.give_back(first)
    with pytest.raises(psycopg.OperationalError):
        left.execute("SELECT 1")
    before = names(databases)
    second = databases.take()
    assert second != first
    assert len(names(databases)) == len(before) + (not kept)
    with psycopg.connect(databases.url(second)) as connection:
        assert connection.execute(COUNTED).fetchone() == (0, 1)
        made = connection.execute("INSERT INTO users (name) VALUES ('bob') RETURNING id, name")
        assert made.fetchone() == (1, "bob")
    databases.give_back(second)
    assert first not in names(databases)

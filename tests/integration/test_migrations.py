"""Migrations beside a farm at work: what they may do, and that it goes on meanwhile."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from alembic import command
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from sqlalchemy import event
from sqlalchemy.engine import Engine

from farm.db import batches, leases, migrate, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim
from farm.db.migrations import online
from farm.db.sessions import NewSession
from farm.errors import SetupError
from farm.spec.batch import BatchSpec
from tests import statements_0003 as old
from tests.conftest import eventually
from tests.records import IMAGE, TEMPLATE

LARGE = "batches|outcomes|images|attempts|inputs|batch_progress|usage|forecasts|sessions|requeue"
FORBIDDEN = {
    rf"CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)\w+ ON ({LARGE})\b": "online.index",
    rf"ALTER TABLE ({LARGE})\b[^;]*ADD CONSTRAINT [^;]*\)(?! NOT VALID)\s*(;|,|$)": "online.check",
    rf"ALTER TABLE ({LARGE})\b[^;]*(\bTYPE\b|SET NOT NULL|DROP COLUMN|RENAME)": "a new column",
    rf"\bUPDATE ({LARGE})\b": "slices by the housekeeper",
}
ALONE = {"0011"}
"""They write a table anew, and wait until no worker is at work."""


@pytest.fixture
def empty(postgres_url: str) -> Iterator[str]:
    """A database without any schema."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS farm_migrated WITH (FORCE)")
        connection.execute("CREATE DATABASE farm_migrated")
    yield urlunsplit(urlsplit(postgres_url)._replace(path="/farm_migrated"))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP DATABASE farm_migrated WITH (FORCE)")


def upgrade(url: str, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = command.upgrade
    with monkeypatch.context() as patched:
        patched.setattr(migrate.command, "upgrade", lambda config, _: real(config, revision))
        migrate.upgrade(url)


@pytest.fixture
def said(empty: str) -> dict[str, list[str]]:
    """All statements by the revision that they lead to."""
    found: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        migrate.upgrade(empty)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    by_revision: dict[str, list[str]] = {}
    statements: list[str] = []
    for statement in found:
        statements.append(" ".join(re.sub(r"--.*", "", statement).split()))
        if "alembic_version" in statement and (number := re.search(r"'(\d{4})'", statement)):
            by_revision.setdefault(number[1], []).extend(statements)
            statements = []
    return by_revision


def test_no_migration_keeps_a_large_table_for_itself(said: dict[str, list[str]]) -> None:
    """Rules of docs/operations.md, but for tables that are made in the same migration."""
    assert len(said) >= 8
    broken = []
    for revision, statements in said.items():
        new = set(re.findall(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+)", " ".join(statements)))
        for pattern, instead in FORBIDDEN.items():
            for statement in statements:
                for found in re.finditer(pattern, statement):
                    if not new & {part for part in found.groups() if part}:
                        broken.append((revision, found[0][:80], instead))
    assert {revision for revision, *_ in broken} == ALONE, broken
    for revision in ALONE:
        assert any("lease_until > now()" in statement for statement in said[revision])


class OldFarm:
    """Processes of the version that had schema 0003, in a thread: they submit, claim, start, end,
    and send heartbeats."""

    def __init__(self, url: str) -> None:
        self.done = 0
        self.error: Exception | None = None
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with psycopg.connect(self._url, autocommit=True, row_factory=dict_row) as connection:
                while not self._stop.is_set():
                    self._round(connection)
        except Exception as error:
            self.error = error

    def _round(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        batch = connection.execute(old.SUBMIT, {"total": 3}).fetchone()
        assert batch
        wanted = {"batch_id": batch["id"], "count": 3, "session_id": "old"}
        held = connection.execute(old.CLAIM, wanted).fetchall()
        for lease in held:
            assert connection.execute(old.START, {**lease, "again": False}).fetchone()
        assert connection.execute(old.BEAT).fetchone()
        ending = {"move": "succeed", "image": IMAGE, "stats": {}, "failures": 0, "delay": 0.0}
        endings = [
            {**ending, **{name: lease[name] for name in ("batch_id", "ord", "attempt")}}
            for lease in held
        ]
        values = {"session_id": "old", "worker": "gpu0", "endings": Jsonb(endings)}
        self.done += len(connection.execute(old.END, values).fetchall())


def test_from_0003_on_beside_a_farm_at_work(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upgrade(empty, "0003", monkeypatch)
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("INSERT INTO users (name) VALUES ('local')")
        connection.execute(old.OPEN)
    farm = OldFarm(empty)
    try:
        eventually(lambda: farm.done > 30 or farm.error)
        upgrade(empty, "0010", monkeypatch)
        done = farm.done
        eventually(lambda: farm.done > done + 30 or farm.error)
    finally:
        farm.stop()
    assert farm.error is None

    monkeypatch.setattr(online, "_STOPPING", 0.0)
    with pytest.raises(SetupError, match="some are at work: gpu0 on here") as refused:
        migrate.upgrade(empty)
    assert "Stop all workers" in str(refused.value.remedy)
    with Database(empty) as db:
        sessions.close(db, "old")
        migrate.upgrade(empty)
        assert migrate.is_current(db)
        ended = db.one(
            "SELECT count(*) AS jobs, count(DISTINCT (batch_id, ord)) AS n FROM outcomes"
        )
        images = db.one("SELECT count(*) AS jobs FROM images WHERE octet_length(sha256) = 32")
        assert ended == {"jobs": farm.done, "n": farm.done}
        assert images == {"jobs": farm.done}
        assert db.all("SELECT FROM pg_index WHERE NOT indisvalid") == []
        assert db.all("SELECT FROM pg_constraint WHERE NOT convalidated") == []
        sessions.open(db, NewSession("new", "gpu0", "here", 1, {}, "cpu", 8), lease=60)
        spec = BatchSpec(template=TEMPLATE, count=2)
        batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec), quota=5).id
        assert len(leases.claim(db, [Claim(batch, "new", count=2)])) == 2


def test_several_at_once_are_safe(empty: str) -> None:
    failed: list[Exception] = []

    def migrated() -> None:
        try:
            migrate.upgrade(empty)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=migrated) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with Database(empty) as db:
        assert migrate.is_current(db)

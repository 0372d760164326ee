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

from farm.db import batches, leases, migrate, schema, sessions, stats, users
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
        assert any("lease_until > clock_timestamp()" in statement for statement in said[revision])


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
        assert schema.is_current(db)
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


STATS = {
    "vram_active": 3 * 2**30,
    "units": 0.5,
    "gpu_seconds": 1.25,
    "queue_seconds": 0.0,
    "steps": 20,
    "checkpoint": "demo",
    "remark": None,
    "buckets": [1, 4],
    "iterations_per_second": 9.0,
}
ATTEMPTS = {
    "all": ("succeeded", STATS),
    "own": ("failed", {"queue_seconds": 0.5, "memory_snapshot": "x.pickle"}),
    "none": ("lost", {}),
    "empty": ("cancelled", {"buckets": None, "precision": None}),
}
"""Of each kind: how it ended, and what was told of it."""

ROWS = """
INSERT INTO users (name, max_in_flight) VALUES ('local', 9);
INSERT INTO batches (user_id, name, state, priority, total, cursor, spec, ended_at, loading_until,
                     tags, keep)
SELECT 1, state, state, 50, 3, CASE state WHEN 'done' THEN 3 ELSE 1 END, '{}',
       CASE WHEN state IN ('done', 'pruned') THEN now() END,
       CASE state WHEN 'loading' THEN now() END, '{a}', state = 'done'
FROM unnest(ARRAY['loading', 'open', 'paused', 'cancelled', 'done', 'pruned']) state;
INSERT INTO inputs (batch_id, ord, spec) VALUES (1, 0, '{}');
INSERT INTO sessions (id, worker, host, pid, device, profile, capacity, lease_until)
VALUES ('s', 'gpu0', 'here', 1, '{}', 'cpu', 8, now() + interval '2 seconds');
INSERT INTO leases (batch_id, ord, attempt, session_id, started_at, cancel_requested)
VALUES (2, 0, 1, 's', now(), false), (4, 0, 1, 's', NULL, true);
INSERT INTO requeue (batch_id, ord, attempt, failures, crashes, not_before, reason)
VALUES (3, 0, 1, 1, 0, now(), '');
INSERT INTO outcomes (batch_id, ord, attempt, state, error)
VALUES (5, 0, 1, 'succeeded', NULL), (5, 1, 1, 'failed', '{"class": "x"}'),
       (5, 2, 1, 'cancelled', NULL);
INSERT INTO images (batch_id, ord, attempt, path, thumb_path, mime, sha256, width, height, bytes,
                    infotext)
VALUES (5, 0, 1, 'a', 'b', 'image/png', repeat('ab', 32), 8, 8, 9, '');
INSERT INTO usage (worker, session_id, hour, batch_id, checkpoint, use, seconds)
VALUES ('gpu0', 's', date_trunc('hour', now()), 5, 'demo', 'denoise', 1);
INSERT INTO forecasts (batch_id, moment, model, p50, p90) VALUES (5, 'accepted', 1, 1, 1);
"""


def test_rows_of_each_kind_from_0006_on_with_nobody_at_work(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose process died a moment ago is no worker any more when its lease has run out, and that
    though nobody is there to say so."""
    upgrade(empty, "0006", monkeypatch)
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(ROWS)
        for ord, (result, found) in enumerate(ATTEMPTS.values()):
            connection.execute(
                """INSERT INTO attempts (batch_id, ord, attempt, session_id, worker, result,
                                         assigned_at, started_at, stats)
                   VALUES (5, %s, 1, 's', 'gpu0', %s, now(), now(), %s)""",
                (ord, result, Jsonb(found)),
            )
    monkeypatch.setattr(online, "_STOPPING", 10.0)
    migrate.upgrade(empty)
    with Database(empty) as db:
        assert [row["state"] for row in db.all("SELECT state FROM batches ORDER BY id")] == [
            "loading", "open", "paused", "cancelled", "done", "pruned",
        ]  # fmt: skip
        told = [
            row["told"]
            for row in db.all(f"SELECT {stats.told('a')} AS told FROM attempts a ORDER BY ord")
        ]
        known = {name: value for name, value in STATS.items() if value is not None}
        assert told[0].pop("iterations_per_second", None) is None, "it had no seconds"
        known.pop("iterations_per_second")
        assert told == [known, ATTEMPTS["own"][1], {}, {}]
        assert db.one("SELECT sha256 FROM images") == {"sha256": bytes.fromhex("ab" * 32)}
        assert batches.output(db, 5).format == "png"
        for table in ("inputs", "requeue", "usage", "forecasts"):
            assert len(db.all(f"SELECT FROM {table}")) == 1, table
        assert len(db.all("SELECT FROM leases")) == 2
        assert len(db.all("SELECT FROM outcomes")) == 3


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
        assert schema.is_current(db)

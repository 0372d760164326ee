"""No hot statement reads a table from end to end that grows with what the farm has done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from farm.broker.queue import Publisher
from farm.db import (
    backlog,
    batches,
    failures,
    health,
    images,
    inputs,
    jobs,
    leases,
    queries,
    retention,
    sessions,
    users,
)
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim, Ending, Lease
from farm.db.sessions import NewSession
from farm.dispatch import dispatcher as dispatching
from farm.dispatch.dispatcher import Dispatcher
from farm.dispatch.housekeeping import Housekeeper, Keep
from farm.dispatch.prospects import prospects
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.moves import Move
from farm.storage import ImageStore
from tests.databases import Databases
from tests.records import IMAGE, TEMPLATE

GROWING = {
    "batches",
    "outcomes",
    "images",
    "attempts",
    "inputs",
    "requeue",
    "batch_progress",
    "sessions",
    "usage",
    "forecasts",
}
"""Leases are as many as workers hold, users and files as there are; the others have no bound."""

FILL = """
INSERT INTO users (name) SELECT 'user ' || n FROM generate_series(1, 200) n;
INSERT INTO batches (user_id, name, state, priority, total, cursor, ahead, spec, ended_at)
SELECT 1 + n % 200, '', CASE WHEN n % 10 = 0 THEN 'open' ELSE 'done' END, 50, 500,
       CASE WHEN n % 10 = 0 THEN 100 ELSE 500 END,
       CASE WHEN n % 20 = 0 THEN '{{[200,300),[400,500)}}'::int8multirange ELSE '{{}}' END,
       '{spec}',
       CASE WHEN n % 10 > 0 THEN now() - n * interval '10 minutes' END
FROM generate_series(1, 20000) n;
INSERT INTO outcomes (batch_id, ord, attempt, state)
SELECT b, o, 1, CASE WHEN o % 50 = 0 THEN 'failed' ELSE 'succeeded' END
FROM generate_series(1, 2000) b, generate_series(0, 99) o;
INSERT INTO images (batch_id, ord, attempt, path, thumb_path, mime, sha256, width, height, bytes,
                    infotext)
SELECT b, o, 1, 'a', 'b', 'image/png', 'c', 8, 8, 9, '' FROM generate_series(1, 2000) b,
       generate_series(0, 29) o;
INSERT INTO sessions (id, worker, host, pid, device, profile, capacity, lease_until,
                      ended_at, state)
SELECT 'old' || n, 'gpu' || n % 50, 'host', 1, '{{}}', 'cpu', 8, now(),
       now() - n * interval '1 hour', 'closed'
FROM generate_series(1, 20000) n;
INSERT INTO sessions (id, worker, host, pid, device, profile, capacity, lease_until)
SELECT 's' || n, 'gpu' || n, 'host', 1, '{{}}', 'cpu', 8, now() + interval '1 hour'
FROM generate_series(1, 50) n;
INSERT INTO attempts (batch_id, ord, attempt, session_id, worker, result, assigned_at, started_at,
                      ended_at)
SELECT b, o, 1, 's' || b % 50, 'gpu' || b % 50,
       CASE WHEN o % 50 = 0 THEN 'failed' ELSE 'succeeded' END, now(), now(),
       now() - (2000 - b) * interval '1 minute'
FROM generate_series(1, 2000) b, generate_series(0, 29) o ORDER BY b;
INSERT INTO batch_progress (batch_id, session_id, succeeded, failed)
SELECT b, 's' || s, 24, 1 FROM generate_series(1, 2000) b, generate_series(1, 4) s;
INSERT INTO inputs (batch_id, ord, spec, needs)
SELECT b, o, '{template}', CASE WHEN b % 2 = 0 OR o % 100 = 0 THEN o / 100 END
FROM generate_series(1, 50) b, generate_series(0, 499) o;
INSERT INTO requeue (batch_id, ord, attempt, failures, crashes, not_before, reason)
SELECT b, o, 1, 0, 0, now() + (o % 3 - 1) * interval '1 hour', ''
FROM generate_series(10, 5000, 10) b, generate_series(60, 97) o;
INSERT INTO leases (batch_id, ord, attempt, session_id, started_at)
SELECT 10 * b, 98, 2, 's' || b, now() FROM generate_series(1, 50) b;
INSERT INTO usage (worker, session_id, hour, batch_id, checkpoint, use, seconds)
SELECT 'gpu' || n % 50, 's' || n % 50, date_trunc('hour', now()) - n / 20 * interval '1 hour',
       1 + n % 2000, 'demo', 'denoise', 1 FROM generate_series(1, 20000) n ON CONFLICT DO NOTHING;
INSERT INTO forecasts (batch_id, moment, model, p50, p90, taken)
SELECT b, m, 1, 1, 1, CASE WHEN b % 10 > 0 THEN 1 END
FROM generate_series(1, 2000) b, unnest(ARRAY['accepted', 'half']) m;
"""


@pytest.fixture(scope="module")
def full(databases: Databases) -> Iterator[Database]:
    """A farm that has done much and has much to do; these tests change little of it."""
    name = "farm_full"
    template = json.dumps({**TEMPLATE, "steps": 20})
    spec = json.dumps({"template": TEMPLATE, "axes": [], "count": 500})
    url = databases.make(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.format(spec=spec, template=template))
        # As autovacuum does in time: indexes by time are summaries of pages that it makes.
        connection.execute("VACUUM ANALYZE")
    with Database(url) as db:
        yield db
    databases.drop(name)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every statement from now on, with the values it had first."""
    found: dict[str, Any] = {}
    execute = psycopg.Connection.execute

    def noting(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        found.setdefault(str(query), params)
        return execute(self, query, params, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", noting)
    return found


def scans(db: Database, said: dict[str, Any]) -> list[str]:
    """The growing tables that statements read from end to end."""
    found = []
    for query, values in list(said.items()):
        if not query.strip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "(")):
            continue
        row = db.one(f"EXPLAIN (FORMAT JSON) {query}", values)
        assert row
        for node in nodes(row["QUERY PLAN"][0]["Plan"]):
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in GROWING:
                found.append(f"{node['Relation Name']} in {' '.join(query.split())[:300]}")
    return found


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def test_the_life_of_a_job(full: Database, said: dict[str, Any]) -> None:
    new = NewSession("new", "gpu99", "host", 1, {}, "cpu", 8)
    spec = BatchSpec(template=TEMPLATE, count=9)
    prospects(full, spec, [])
    batch = batches.accept(full, NewBatch(1, spec=spec, idempotency_key="hot"), quota=10**9).id
    listed = [JobSpec(**TEMPLATE)] * 3  # type: ignore[arg-type]
    batches.accept(full, NewBatch(1, jobs=listed))
    sessions.open(full, new, lease=60)
    held = leases.claim(full, [Claim(batch, "new", count=5), Claim(10, "new", ords=[60])])
    for lease in held:
        leases.start(full, lease)
    sessions.beat(full, "new", lease=60, resident=[], stats={})
    moves = (Move.SUCCEED, Move.FAIL, Move.RETRY, Move.STOP)
    endings = [
        Ending(*lease[:3], move, image=IMAGE if move is Move.SUCCEED else None)
        for lease, move in zip(held, moves, strict=False)
    ]
    leases.end(full, "new", "gpu99", endings)
    leases.set_aside(full, batch, spans=1, jobs=2)
    leases.end(full, "new", "gpu99", endings)  # whose answer was lost
    failures.repeat(full, batch)
    failures.repeat(full, batch, 1)
    batches.pause(full, batch)
    batches.resume(full, batch)
    batches.set_priority(full, batch, 60)
    batches.cancel(full, batch)
    sessions.close(full, "new")
    leases.republished(full, held)
    leases.reap(full, ["new"], crashed=True)
    leases.reap(full, ["new"], crashed=True, started=False)
    leases.reap_forgotten(full, slack=60)
    backlog.finish(full)
    backlog.finish(full, among={batch})
    named = {
        name: text
        for name, text in vars(queries).items()
        if name.isupper() and name[0] != "_" and name != "PLACE"
    }
    missing = [name for name, text in named.items() if text not in said]
    assert missing == [], "each statement of farm.db.queries is looked at"
    assert not (read := scans(full, said)), "\n".join(read)


def test_what_the_dispatcher_reads(
    full: Database,
    said: dict[str, Any],
    broker_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    publisher = Publisher(broker_url)
    running = Dispatcher(full, publisher)
    assert running.cycle()
    running.cycle()
    health.has_succeeded(full, health.Failure("host", "gpu1", "", 1, _now(full), ""))
    housekeeper = Housekeeper(ImageStore(str(tmp_path)), publisher, Keep(batches=30, attempts=30))
    for _ in range(3):
        housekeeper.slice(full)
    retention.old(full, days=30)
    publisher.close()
    assert not (read := scans(full, said)), "\n".join(read)


def test_what_is_found_far_away_in_a_list(full: Database, said: dict[str, Any]) -> None:
    """Whether every job of the list is marked, or few are."""
    for batch in (8, 9):
        assert [number for number, _ in inputs.sorts(full, batch, limit=9)] == [0, 1, 2, 3, 4]
        assert inputs.following(full, batch, 3, 450) is None
        assert inputs.following(full, batch, 3, 40) == 300
    assert not (read := scans(full, said)), "\n".join(read)
    values = {"batch_id": 8, "after": -1, "limit": 9}
    assert touched(full, inputs._SORTS, values, "inputs") < 20, "the first of each sort"


def test_what_people_look_at(full: Database, said: dict[str, Any]) -> None:
    batches.page(full, limit=50)
    batches.fetch(full, 1000)
    for state in (None, *jobs.STATES):
        jobs.page(full, 1000, limit=50, state=state)
    jobs.fetch(full, 1000, 5)
    images.fetch(full, 1000, 5)
    failures.page(full, limit=20)
    health.active(full)
    sessions.live(full)
    users.shares(full)
    leases.start(full, Lease(1, 1, 1, "s1"))
    assert not (read := scans(full, said)), "\n".join(read)


def test_of_many_open_batches_few_are_read(full: Database, said: dict[str, Any]) -> None:
    """Twenty users have a hundred each: so many of each are read as are asked for, and of those
    that may be at their end the ones that are named."""
    found = backlog.open_batches(full, least=0, each=5, limit=1000)
    assert len({batch.user_id for batch in found}) == 20
    assert len(found) == 100
    named = {10, 20, 30}
    assert not named & set(backlog.finish(full, among=named))
    for query, values in list(said.items()):
        if "batches" in query and query.strip().startswith(("SELECT", "WITH", "UPDATE")):
            assert touched(full, query, values) < 200, query


def touched(db: Database, query: str, values: Any, table: str = "batches") -> int:
    """Rows of a table that a statement looks at."""
    row = db.one(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", values)
    assert row
    looked = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck")
    return sum(
        int(node["Actual Loops"] * sum(node.get(name, 0) for name in looked))
        for node in nodes(row["QUERY PLAN"][0]["Plan"])
        if node.get("Relation Name") == table
    )


def _now(db: Database) -> Any:
    row = db.one("SELECT now() - interval '1 hour' AS now")
    assert row
    return row["now"]


def test_a_table_read_from_end_to_end_is_seen(full: Database, said: dict[str, Any]) -> None:
    full.all("SELECT batch_id FROM outcomes WHERE state = 'succeeded'")
    assert len(scans(full, said)) == 1

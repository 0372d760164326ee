"""Usage: what sessions write of their seconds, what is told of those that died, the report."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

from farm.api.deps import Services
from farm.api.routes.usage import beginning
from farm.cli.main import app
from farm.db import batches, leases, sessions, usage, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim
from farm.db.sessions import NewSession
from farm.db.usage import Spent
from farm.errors import InvalidInput
from farm.spec.batch import BatchSpec
from farm.worker import ledger as ledgers
from farm.worker.accountant import Accountant, Owner
from farm.worker.ledger import Ledger
from tests.records import TEMPLATE
from tests.standin import StandIn

HOUR = "2026-11-20 10:00:00+00"
LATER = "2026-11-20 11:00:00+00"
FOR_EVER = "2026-01-01"


def open_session(db: Database, id: str = "s", worker: str = "gpu0") -> str:
    return sessions.open(db, NewSession(id, worker, "host", 1, {}, "cpu", 4), lease=60)


def submit(db: Database, *, total: int = 4) -> int:
    spec = BatchSpec(TEMPLATE, count=total)
    return batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id


def written(db: Database) -> dict[tuple[str, int, str], float]:
    rows = db.all("SELECT worker, batch_id, use, sum(seconds) AS s FROM usage GROUP BY 1, 2, 3")
    return {(row["worker"], row["batch_id"], row["use"]): row["s"] for row in rows}


def beat(db: Database, id: str, *spent: Spent) -> None:
    assert sessions.beat(db, id, lease=60, resident=[], stats={}, spent=spent)


def grow_old(db: Database, id: str, seconds: float) -> None:
    """A session has been alive for so long, and was heard of just now."""
    with db.connection() as connection:
        connection.execute(
            """UPDATE sessions SET started_at = now() - make_interval(secs => %s), beat_at = now()
               WHERE id = %s""",
            (seconds, id),
        )


def die(db: Database, id: str) -> None:
    with db.connection() as connection:
        connection.execute("UPDATE sessions SET lease_until = now() - interval '1s'")
    assert id in sessions.expire(db)


def test_totals_written_twice_count_once_and_know_their_user(db: Database) -> None:
    open_session(db)
    batch = submit(db)
    for seconds in (5.0, 7.5, 7.5):
        beat(db, "s", Spent(HOUR, batch, "demo", "denoise", seconds))
    assert written(db) == {("gpu0", batch, "denoise"): 7.5}
    [row] = db.all("SELECT user_id FROM usage")
    assert row["user_id"] == db.all("SELECT user_id FROM batches")[0]["user_id"]


def test_what_a_dead_session_had_in_flight_has_failed_up_to_its_last_heartbeat(
    db: Database,
) -> None:
    open_session(db)
    first, second = submit(db), submit(db)
    held = leases.claim(db, [Claim(first, "s", count=3), Claim(second, "s", count=1)])
    for lease in held:
        leases.start(db, lease)
    grow_old(db, "s", 100)
    beat(db, "s", Spent(HOUR, 0, "", "waiting", 60.0))
    die(db, "s")
    found = written(db)
    assert found["gpu0", 0, "waiting"] == 60
    assert found["gpu0", first, "failed"] == pytest.approx(30, abs=1)
    assert found["gpu0", second, "failed"] == pytest.approx(10, abs=1)
    sessions.expire(db)
    assert written(db) == found, "nobody dies twice"


def test_a_dead_session_that_held_nothing_was_waiting(db: Database) -> None:
    open_session(db)
    leases.claim(db, [Claim(submit(db), "s", count=2)])  # never started
    grow_old(db, "s", 50)
    die(db, "s")
    assert written(db) == {("gpu0", 0, "waiting"): pytest.approx(50, abs=1)}


def test_the_dead_write_no_more(db: Database) -> None:
    open_session(db)
    die(db, "s")
    late = [Spent(HOUR, 0, "", "waiting", 99.0)]
    assert sessions.beat(db, "s", lease=60, resident=[], stats={}, spent=late) is None
    sessions.close(db, "s", spent=late)
    assert written(db).get(("gpu0", 0, "waiting"), 0) < 1


def test_a_ledger_writes_what_changed_and_forgets_hours_that_are_over(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgers, "PAGE", 0.0)
    now = 0.0
    accountant = Accountant(lambda: now)
    ledger = Ledger(accountant, HOUR)
    accountant.enter("7-0.1", Owner(7, "demo"))

    def due(hour: str) -> dict[str, float]:
        found = ledger.due()
        ledger.written(hour=hour, idle_by_policy=False)
        return {f"{each.hour[11:13]} {each.use}": each.seconds for each in found}

    now = 3.0
    assert due(HOUR) == {"10 waiting": 3}
    assert due(HOUR) == {}
    accountant.wake()
    now = 5.0
    accountant.work("denoise", {"7-0.1": 2.0})
    accountant.leave("7-0.1", None)
    assert due(LATER) == {"10 denoise": 2}
    accountant.rest()
    now = 6.0
    accountant.turn(LATER, by_policy=False)
    now = 9.0
    assert due(LATER) == {"11 waiting": 4}
    assert {entry.period for entry in accountant.books()} == {LATER}
    assert {spent.use: spent.seconds for spent in ledger.last()} == {}


def test_a_heartbeat_that_failed_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "PAGE", 0.0)
    now = 0.0
    ledger = Ledger(Accountant(lambda: now), HOUR)
    now = 3.0
    assert [spent.seconds for spent in ledger.due()] == [3]
    now = 4.0  # nothing was written
    assert [spent.seconds for spent in ledger.due()] == [4]


SPENT = st.lists(
    st.tuples(
        st.sampled_from(["s0", "s1"]),
        st.integers(0, 30),
        st.sampled_from(["denoise", "load", "waiting"]),
        st.floats(0.1, 1000),
    ),
    max_size=20,
    unique_by=lambda one: one[:3],
)


def test_old_hours_are_added_up_and_nothing_is_lost(db: Database) -> None:
    def put(rows: list[tuple[str, int, str, float]]) -> None:
        with db.connection() as connection:
            connection.execute("TRUNCATE usage")
            connection.cursor().executemany(
                """INSERT INTO usage (worker, session_id, hour, batch_id, checkpoint, use, seconds)
                   VALUES ('w', %s, date_trunc('hour', now(), 'UTC')
                                    - make_interval(hours => %s * 12), 1, 'm', %s, %s)""",
                rows,
            )

    @settings(max_examples=15)
    @given(SPENT)
    def check(rows: list[tuple[str, int, str, float]]) -> None:
        put(rows)
        before, whole = written(db), sum(seconds for *_, seconds in rows)
        for _ in range(2):
            while usage.roll_up(db, hours=3, workers=99, limit=2):
                assert written(db) == pytest.approx(before), "and so it is at any moment"
            assert written(db) == pytest.approx(before)
        left = db.all("SELECT session_id, hour, use FROM usage WHERE session_id <> ''")
        young = {row for row in rows if row[1] * 12 < 3 * 24}
        assert len(left) >= len(young)
        rolled = db.all("SELECT hour, use FROM usage WHERE session_id = ''")
        assert len({(row["hour"], row["use"]) for row in rolled}) == len(rolled)
        assert all(row["hour"].hour == 0 for row in rolled)
        for _ in range(2):
            while usage.roll_up(db, hours=3, workers=5, limit=3):
                pass
            assert sum(written(db).values()) == pytest.approx(whole)
        old = db.all(
            """SELECT worker FROM usage
               WHERE hour < date_trunc('day', now(), 'UTC') - interval '5 days'"""
        )
        assert {row["worker"] for row in old} <= {""}

    check()


def test_the_report_adds_up_by_whatever_it_is_made(api: TestClient, services: Services) -> None:
    db = services.db
    worker = StandIn(db, services.images)
    other = StandIn(db, services.images, name="cpu1")
    batch = int(api.post("/v1/batches", json={"prompt": "a lion", "count": 2}).json()["id"])
    beat(
        db,
        worker.session,
        Spent(HOUR, batch, "demo", "denoise", 5.0),
        Spent(HOUR, 0, "", "waiting", 2.0),
    )
    beat(db, other.session, Spent("2026-11-21 10:00:00+00", 0, "demo", "load", 3.0))

    def report(by: str, **more: str) -> dict[str, Any]:
        answer = api.get("/v1/usage", params={"by": by, "since": FOR_EVER, **more}).json()
        assert sum(line["total"] for line in answer["lines"]) == pytest.approx(
            sum(answer["total"].values())
        )
        return {line["key"]: line["seconds"] for line in answer["lines"]}

    assert report("user") == {"local": {"denoise": 5}, "": {"waiting": 2, "load": 3}}
    assert report("batch") == {str(batch): {"denoise": 5}, "": {"waiting": 2, "load": 3}}
    assert report("checkpoint") == {"demo": {"denoise": 5, "load": 3}, "": {"waiting": 2}}
    assert report("day") == {
        "2026-11-20": {"denoise": 5, "waiting": 2},
        "2026-11-21": {"load": 3},
    }
    assert report("worker") == {"cpu0": {"denoise": 5, "waiting": 2}, "cpu1": {"load": 3}}
    assert report("worker", since="2026-11-21") == {"cpu1": {"load": 3}}


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [("by", "colour", "user, batch"), ("since", "yesterday", "24h"), ("since", "9999999d", "24h")],
)
def test_a_wrong_question_is_told_so(api: TestClient, field: str, value: str, remedy: str) -> None:
    answer = api.get("/v1/usage", params={field: value})
    assert answer.status_code == 422
    assert answer.json()["field"] == field
    assert remedy in answer.json()["remedy"]


def test_times_without_a_zone_are_utc() -> None:
    assert beginning("2026-11-20").isoformat() == "2026-11-20T00:00:00+00:00"
    assert beginning("2026-11-20T08:00:00+02:00").isoformat() == "2026-11-20T08:00:00+02:00"
    assert (beginning("1d") - beginning("24h")).total_seconds() == pytest.approx(0, abs=1)
    with pytest.raises(InvalidInput):
        beginning("999999w")


@pytest.fixture
def command(served: str, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("FARM_URL", served)
    return CliRunner()


def test_the_command_shows_a_table(command: CliRunner, services: Services) -> None:
    shown = command.invoke(app, ["usage"])
    assert "No worker has been alive" in shown.stdout
    worker = StandIn(services.db, services.images)
    beat(services.db, worker.session, Spent(HOUR, 0, "", "waiting", 90.0))
    shown = command.invoke(app, ["usage", "--by", "worker", "--since", FOR_EVER])
    assert [line.split() for line in shown.stdout.splitlines()] == [
        ["worker", "waiting", "all"],
        ["cpu0", "1:30", "1:30"],
        ["all", "1:30", "1:30"],
    ]
    assert command.invoke(app, ["usage", "--by", "colour"]).exit_code == 2


def test_a_long_life_of_which_the_first_days_were_added_up(db: Database) -> None:
    """What was rolled up was written: it is not lost a second time."""
    open_session(db)
    grow_old(db, "s", 10 * 86400)
    with db.connection() as connection:
        connection.execute(
            """INSERT INTO usage (worker, session_id, hour, batch_id, checkpoint, use, seconds)
               SELECT 'gpu0', 's', hour, 0, '', 'waiting', 3600
               FROM generate_series(date_trunc('hour', now(), 'UTC') - interval '10 days',
                                    date_trunc('hour', now(), 'UTC') - interval '1 hour',
                                    interval '1 hour') hour"""
        )
    while usage.roll_up(db, hours=7, workers=92, limit=50):
        pass
    die(db, "s")
    left = db.all("SELECT sum(seconds) AS seconds FROM usage")
    # The hour that had just begun is what it did not live to write.
    assert left[0]["seconds"] == pytest.approx(10 * 86400, abs=3601)

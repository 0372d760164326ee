"""Workers that fail one batch after the other: put away, tested, let back."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner, Result

from farm.api.deps import Services
from farm.cli.main import app
from farm.db import batches, health, leases, orders, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim, Ending
from farm.db.sessions import NewSession
from farm.dispatch.health import tend
from farm.spec.batch import BatchSpec
from farm.spec.canary import CHECKPOINT, answers
from farm.spec.moves import Move
from tests.conftest import eventually
from tests.records import IMAGE, TEMPLATE
from tests.standin import StandIn

SOUND = {"fields": [list(fields) for fields in answers()]}
BLACK = {"fields": [[0.0] * len(fields) for fields in answers()]}


def attempt(db: Database, session: str, worker: str, fails: str | None) -> None:
    """A job of a batch of its own ends on a worker: as a failure of that class, or well."""
    spec = BatchSpec(template=TEMPLATE, count=1)
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id
    [lease] = leases.claim(db, [Claim(batch, session, count=1)])
    leases.start(db, lease)
    if fails is None:
        ending = Ending(*lease[:3], Move.SUCCEED, image=IMAGE)
    else:
        ending = Ending(*lease[:3], Move.RETRY, error={"class": fails, "detail": "It broke."})
    leases.end(db, session, worker, [ending])


def opened(db: Database, worker: str = "gpu0", host: str = "here", serial: int = 1) -> str:
    session = NewSession(f"{worker}-{host}-{serial}", worker, host, 1, {}, "cpu", 8)
    sessions.open(db, session, lease=600)
    return session.id


def states(db: Database) -> dict[str, str]:
    return {session.id: session.state for session in sessions.live(db)}


@pytest.mark.parametrize(
    ("ends", "away"),
    [
        (["worker", "worker"], False),
        (["worker", "worker", "worker"], True),
        (["worker", "numeric", "worker"], True),
        (["worker", "worker", None, "worker"], False),
        ([None, "worker", "worker", "worker"], True),
        (["input", "input", "input", "missing asset"], False),
        (["infrastructure"] * 4, False),
        (["worker", "input", "worker", "infrastructure", "worker"], True),
    ],
)
def test_who_fails_three_batches_in_a_row_gets_no_more_jobs(
    db: Database, ends: list[str | None], away: bool
) -> None:
    session, other = opened(db), opened(db, "gpu1")
    namesake = opened(db, "gpu0", "elsewhere")
    for fails in ends:
        attempt(db, session, "gpu0", fails)
    tend(db)
    bad = "quarantined" if away else "live"
    assert states(db) == {session: bad, other: "live", namesake: "live"}
    if away:
        (found,) = health.active(db)
        assert (found.host, found.worker, found.by_hand) == ("here", "gpu0", False)
        assert "3 batches" in found.reason
        assert "It broke." in found.reason


def fail(db: Database, session: str) -> None:
    for _ in range(3):
        attempt(db, session, "gpu0", "worker")
    tend(db)


def test_who_passes_its_canaries_comes_back(db: Database) -> None:
    session = opened(db)
    fail(db, session)
    assert orders.take(db, session) == [("canary", CHECKPOINT)], "at once, the first time"
    tend(db)
    assert states(db) == {session: "quarantined"}
    assert orders.take(db, session) == [], "it is given time to make them"
    health.answer(db, session, SOUND)
    tend(db)
    assert states(db) == {session: "live"}
    assert health.active(db) == []
    tend(db)
    assert states(db) == {session: "live"}, "what was before is forgiven"


@pytest.mark.parametrize(
    ("told", "why"),
    [(BLACK, "off by"), ({"error": "RuntimeError: CUDA"}, "CUDA"), ({}, "0 of 3 known pictures")],
)
def test_who_fails_them_stays_and_gets_others_later(
    db: Database, told: dict[str, Any], why: str
) -> None:
    session = opened(db)
    fail(db, session)
    orders.take(db, session)
    health.answer(db, session, told)
    tend(db)
    (found,) = health.active(db)
    assert (found.tests, states(db)) == (1, {session: "quarantined"})
    assert why in str(found.last_test)
    assert orders.take(db, session) == []
    make_due(db)
    tend(db)
    assert orders.take(db, session) == [("canary", CHECKPOINT)]
    health.answer(db, session, SOUND)
    tend(db)
    assert states(db) == {session: "live"}


def make_due(db: Database) -> None:
    db.all("UPDATE quarantines SET test_at = now() RETURNING 1")


def test_a_restart_is_no_way_out(db: Database) -> None:
    session = opened(db)
    fail(db, session)
    again = opened(db, serial=2)
    sessions.expire(db)
    assert states(db) == {again: "quarantined"}
    make_due(db)
    tend(db)
    assert orders.take(db, again) == [("canary", CHECKPOINT)]


def test_who_comes_again_soon_waits_longer(db: Database) -> None:
    session = opened(db)
    waits = []
    for _ in range(3):
        fail(db, session)
        row = db.one(
            "SELECT times, extract(epoch FROM test_at - now())::float AS s FROM quarantines"
        )
        assert row
        waits.append((row["times"], round(row["s"], -1)))
        health.answer(db, session, SOUND)
        tend(db)
        assert states(db) == {session: "live"}
    assert [times for times, _ in waits] == [1, 2, 3]
    assert waits[1][1] < waits[2][1]


def test_by_hand_only_a_person_ends_it(api: TestClient, worker: StandIn) -> None:
    reason = {"reason": "The fan is broken."}
    for _ in range(2):
        (found,) = api.post("/v1/workers/cpu0:quarantine", json=reason).json()["workers"]
    assert found["state"] == "quarantined"
    assert found["quarantine"]["reason"] == "The fan is broken."
    assert found["quarantine"]["test_at"] is None
    tend(worker.db)
    assert orders.take(worker.db, worker.session) == []
    health.answer(worker.db, worker.session, SOUND)
    (found,) = api.post("/v1/workers/cpu0:resume").json()["workers"]
    assert (found["state"], found["quarantine"]) == ("live", None)


def test_a_farm_whose_workers_are_all_away_says_so(api: TestClient, worker: StandIn) -> None:
    assert api.get("/readyz").json()["warnings"] == []
    batch = api.post("/v1/batches", json={"prompt": "a lion"}).json()["id"]
    for _ in range(3):
        attempt(worker.db, worker.session, "cpu0", "worker")
    tend(worker.db)
    ready = api.get("/readyz")
    assert ready.status_code == 200
    assert "cpu0: It failed jobs of 3 batches" in ready.json()["warnings"][0]
    why = api.get(f"/v1/jobs/{batch}-0/why").json()
    assert "quarantine" in why["reason"]
    assert "cpu0" in why["reason"]


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("gpu9", None, (404, "worker")),
        ("cpu0", {"reason": ""}, (422, "reason")),
        ("cpu0", {"because": "x"}, (422, "reason")),
    ],
)
def test_what_cannot_be_quarantined(
    api: TestClient, worker: StandIn, name: str, body: Any, told: tuple[int, str]
) -> None:
    answer = api.post(f"/v1/workers/{name}:quarantine", json=body)
    assert (answer.status_code, answer.json()["field"]) == told
    assert states(worker.db) == {worker.session: "live"}


def farm(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["workers", *words])
    assert result.exit_code == code, result.output
    return result


def test_the_command_line(
    served: str, services: Services, worker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_URL", served)
    assert "farm workers resume cpu0" in farm("quarantine", "cpu0", "--because", "loud").stdout
    assert "cpu0 is in quarantine" in farm().stdout
    assert "loud" in farm().stdout
    assert "cpu0 takes jobs" in farm("resume", "cpu0").stdout
    assert "quarantine for" not in farm().stdout
    assert "no live worker gpu9" in farm("quarantine", "gpu9", code=3).output


SLOW = """
CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_lock(7); PERFORM pg_advisory_unlock(7); RETURN NULL; END';
CREATE TRIGGER linger AFTER INSERT ON sessions FOR EACH ROW WHEN (new.id = 'gpu0-here-2')
    EXECUTE FUNCTION linger();
"""


@pytest.mark.parametrize(("first", "after"), [("live", "quarantined"), ("quarantined", "live")])
def test_a_session_that_opens_meanwhile_is_not_missed(db: Database, first: str, after: str) -> None:
    """It has looked for a quarantine and is not there yet for who decides about its worker."""
    opened(db)
    if first == "quarantined":
        health.quarantine(db, "gpu0", "It is loud.", by_hand=True)

    def decide() -> None:
        if after == "quarantined":
            health.quarantine(db, "gpu0", "It is loud.", by_hand=True)
        else:
            health.resume(db, "gpu0")

    threads = [threading.Thread(target=act) for act in (lambda: opened(db, serial=2), decide)]
    waiting = "SELECT FROM pg_locks WHERE NOT granted"
    with Database(db.url) as other, other.connection() as connection:
        connection.execute(SLOW)
        connection.commit()
        connection.execute("SELECT pg_advisory_lock(7)")
        for number, thread in enumerate(threads, start=1):
            thread.start()
            eventually(lambda wanted=number: len(db.all(waiting)) >= wanted)  # type: ignore[misc]
        connection.execute("SELECT pg_advisory_unlock(7)")
        for thread in threads:
            thread.join()
    assert set(states(db).values()) == {after}

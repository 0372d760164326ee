"""A session's heartbeat, whatever goes wrong around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from farm.db import sessions
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.spec.moves import Move
from farm.worker import ledger
from farm.worker import session as living
from farm.worker.accountant import Accountant, Owner
from farm.worker.attempt import use_of
from farm.worker.session import Session
from tests.conftest import eventually

Report = Callable[[], tuple[list[str], dict[str, Any]]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(living, "BEAT", 0.05)
    monkeypatch.setattr(ledger, "PAGE", 0.0)


def begin(db: Database, report: Report, accountant: Accountant) -> Session:
    return Session(
        db,
        NewSession("s", "cpu0", "host", 1, {}, "cpu", 8),
        lease=60,
        report=report,
        cancel=lambda _: None,
        obey=lambda *_: None,
        accountant=accountant,
    )


def spent(db: Database) -> dict[str, float]:
    rows = db.all("SELECT use, sum(seconds) AS seconds FROM usage GROUP BY use")
    return {row["use"]: row["seconds"] for row in rows}


def test_a_report_that_fails_does_not_end_the_heartbeat(db: Database) -> None:
    reports: list[int] = []

    def report() -> tuple[list[str], dict[str, Any]]:
        reports.append(1)
        if len(reports) < 3:
            raise RuntimeError("the meter is broken")
        return ["demo"], {}

    session = begin(db, report, Accountant())
    eventually(lambda: [each.resident for each in sessions.live(db)] == [["demo"]], within=20)
    session.close()
    assert sessions.live(db) == []


def test_the_seconds_of_a_session_add_up_to_its_life(db: Database) -> None:
    accountant = Accountant()
    session = begin(db, lambda: ([], {}), accountant)
    eventually(lambda: spent(db).get("waiting", 0) > 0.1)
    accountant.wake()
    accountant.enter("7-0.1", Owner(7, "demo"))
    accountant.work("denoise", {"7-0.1": 0.1})
    accountant.leave("7-0.1", "cancelled")
    accountant.rest()
    session.drain()
    eventually(lambda: spent(db).get("policy", 0) > 0.1)
    session.close()
    [life] = db.all(
        "SELECT extract(epoch FROM ended_at - started_at)::float AS seconds FROM sessions"
    )
    assert sum(spent(db).values()) == pytest.approx(life["seconds"], rel=0.01, abs=0.1)


@pytest.mark.parametrize(
    ("move", "state", "use"),
    [
        (Move.SUCCEED, "succeeded", None),
        (Move.SUCCEED, None, "failed"),  # fenced: another attempt's image counts
        (Move.FAIL, "failed", "failed"),
        (Move.RETRY, "waiting", "failed"),
        (Move.RETRY, "cancelled", "cancelled"),
        (Move.STOP, "cancelled", "cancelled"),
        (Move.RELEASE, "waiting", "preempted"),
        (Move.RELEASE, "cancelled", "cancelled"),
    ],
)
def test_what_the_seconds_of_an_attempt_count_as(
    move: Move, state: str | None, use: str | None
) -> None:
    assert use_of(move, state) == use

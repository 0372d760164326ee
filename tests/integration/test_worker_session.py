"""A session's heartbeat, whatever goes wrong around it."""

from __future__ import annotations

from typing import Any

import pytest

from farm.db import sessions
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.worker import session as living
from farm.worker.accountant import Accountant
from farm.worker.session import Session
from tests.conftest import eventually


def test_a_report_that_fails_does_not_end_the_heartbeat(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(living, "BEAT", 0.05)
    reports: list[int] = []

    def report() -> tuple[list[str], dict[str, Any]]:
        reports.append(1)
        if len(reports) < 3:
            raise RuntimeError("the meter is broken")
        return ["demo"], {}

    new = NewSession("s", "cpu0", "host", 1, {}, "cpu", 8)
    session = Session(
        db,
        new,
        lease=60,
        report=report,
        cancel=lambda _: None,
        obey=lambda *_: None,
        accountant=Accountant(),
    )
    eventually(lambda: [each.resident for each in sessions.live(db)] == [["demo"]], within=20)
    session.close()
    assert sessions.live(db) == []

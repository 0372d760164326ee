"""A dispatcher and its standby: killed, frozen, and cut off behind an open connection."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farm.db import batches, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.spec.batch import BatchSpec
from tests.conftest import eventually
from tests.proxy import Proxy
from tests.records import TEMPLATE

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What all dispatchers say."""
    return tmp_path / "dispatchers.log"


@pytest.fixture
def start(broker_url: str, log: Path) -> Iterator[Start]:
    """Starts a dispatcher on a database."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(database_url: str) -> subprocess.Popen[bytes]:
        told = {"FARM_DATABASE_URL": database_url, "FARM_BROKER_URL": broker_url}
        command = [sys.executable, "-m", "farm.dispatch"]
        with log.open("ab") as file:
            running.append(subprocess.Popen(command, env={**os.environ, **told}, stderr=file))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.wait()


def epoch(db: Database) -> int:
    row = db.one("SELECT epoch FROM leader")
    return row["epoch"] if row else 0


def standing_by(db: Database) -> int:
    """Dispatchers that are connected."""
    rows = db.all(
        """SELECT DISTINCT application_name FROM pg_stat_activity
           WHERE datname = current_database() AND application_name LIKE 'farm-dispatcher-%%'"""
    )
    return len(rows)


def leads(db: Database) -> bool:
    """Whether somebody does a leader's work: a new job gets one of the session's places."""
    spec = BatchSpec(template=TEMPLATE, count=1)
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id
    placed = "SELECT FROM leases WHERE batch_id = %(batch)s"
    eventually(lambda: db.all(placed, {"batch": batch}))
    return True


@pytest.mark.parametrize("how", ["killed", "frozen", "cut off"])
def test_a_standby_takes_over(
    db: Database,
    start: Start,
    log: Path,
    how: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """How soon after a kill is measured by ``bench/takeover.py``."""
    sessions.open(db, NewSession("s", "cpu0", "host", 1, {}, "cpu", 8), lease=600)
    proxy = Proxy(db.url)
    leader = start(proxy.url)
    eventually(lambda: epoch(db) == 1)
    assert leads(db)
    standby = start(db.url)
    eventually(lambda: standing_by(db) == 2)
    began = time.monotonic()
    if how == "killed":
        leader.kill()
    elif how == "frozen":
        leader.send_signal(signal.SIGSTOP)
    else:
        proxy.freeze()
    eventually(lambda: epoch(db) == 2, within=60, every=0.01)
    took = time.monotonic() - began
    with capsys.disabled():
        print(f"\na leader {how} was followed after {took:.2f} s")
    ousted = "was not heard of" in log.read_text()
    assert ousted == (how != "killed"), "no standby waits for the lease of a dead leader"
    assert leads(db)

    leader.send_signal(signal.SIGCONT)
    proxy.thaw()
    assert leads(db)
    assert epoch(db) == 2, "the old leader stands by, or is gone"
    if how != "killed":
        standby.kill()
        eventually(lambda: epoch(db) == 3)
        assert leads(db), "it has stood by, and leads again"
    proxy.close()

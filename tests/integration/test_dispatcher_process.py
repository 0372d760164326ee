"""``python -m farm.dispatch`` as a process: without torch, and ending in good order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from farm.db import batches, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.spec.batch import BatchSpec
from tests.conftest import eventually
from tests.records import TEMPLATE

# None in sys.modules makes an import fail, as if the package were not installed.
WITHOUT = """
import runpy, sys
for name in ("torch", "diffusers", "transformers", "safetensors", "fastapi"):
    sys.modules[name] = None
runpy.run_module("farm.dispatch", run_name="__main__")
"""


def test_it_places_jobs_without_torch(db: Database, database_url: str, broker_url: str) -> None:
    spec = BatchSpec(template=TEMPLATE, count=3)
    batches.accept(db, NewBatch(users.local(db).id, spec=spec))
    sessions.open(db, NewSession("alone", "cpu0", "host", 1, {}, "cpu", 2), lease=600)
    told = {"FARM_DATABASE_URL": database_url, "FARM_BROKER_URL": broker_url}
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT], env={**os.environ, **told}, stderr=subprocess.PIPE
    )
    try:
        placed = "SELECT FROM leases WHERE session_id = 'alone'"
        eventually(lambda: process.poll() is not None or len(db.all(placed)) == 2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.wait()


def dispatcher(database_url: str, broker_url: str) -> subprocess.Popen[bytes]:
    told = {"FARM_DATABASE_URL": database_url, "FARM_BROKER_URL": broker_url}
    command = [sys.executable, "-m", "farm.dispatch"]
    return subprocess.Popen(command, env={**os.environ, **told}, stderr=subprocess.DEVNULL)


def epoch(db: Database) -> int:
    row = db.one("SELECT epoch FROM leader")
    return row["epoch"] if row else 0


def test_a_frozen_leader_is_followed_and_does_no_more_when_it_wakes(
    db: Database, database_url: str, broker_url: str
) -> None:
    began = epoch(db)
    first = dispatcher(database_url, broker_url)
    eventually(lambda: epoch(db) > began)
    standby = dispatcher(database_url, broker_url)
    try:
        first.send_signal(signal.SIGSTOP)
        eventually(lambda: epoch(db) == began + 2)
        spec = BatchSpec(template=TEMPLATE, count=3)
        batches.accept(db, NewBatch(users.local(db).id, spec=spec))
        sessions.open(db, NewSession("alone", "cpu0", "host", 1, {}, "cpu", 2), lease=600)
        eventually(lambda: len(db.all("SELECT FROM leases")) == 2)

        first.send_signal(signal.SIGCONT)
        standby.kill()
        standby.wait()
        eventually(lambda: epoch(db) == began + 3)  # the first has stood by, and leads again
        db.one("UPDATE sessions SET capacity = 3 RETURNING id")
        eventually(lambda: len(db.all("SELECT FROM leases")) == 3)
    finally:
        for process in (first, standby):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()

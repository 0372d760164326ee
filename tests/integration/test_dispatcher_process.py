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

"""How long a farm is without its dispatcher when the leading one is killed.

    .venv/bin/python bench/takeover.py [--kills 20]

Starts a Postgres, a Valkey and two dispatchers. Again and again the one that leads is killed with
SIGKILL, a job is submitted at that moment, and another dispatcher is started to stand by. Seconds
on the clock from the kill until the standby leads, and until it has placed the job.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.postgres import DEFAULTS, postgres  # noqa: E402
from farm.db import batches, sessions, users  # noqa: E402
from farm.db.batches import NewBatch  # noqa: E402
from farm.db.database import Database  # noqa: E402
from farm.db.sessions import NewSession  # noqa: E402
from farm.embedded import sockets, valkey  # noqa: E402
from farm.spec.batch import BatchSpec  # noqa: E402

SPEC = BatchSpec(
    template={**DEFAULTS, "checkpoint": "m", "prompt": "p", "sampler": "Euler", "seed": 1}, count=1
)


def wait(condition: Callable[[], object], *, every: float) -> None:
    """Wait for something that comes, at most a minute."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(every)


def takeovers(db: Database, environment: dict[str, str], kills: int) -> list[tuple[float, float]]:
    """Seconds from each kill until another leads, and until it has placed a job."""

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "farm.dispatch"], env=environment)

    owner, found = users.local(db).id, []
    sessions.open(db, NewSession("s", "gpu0", "host", 1, {}, "24gb", 10 * kills), lease=3600)
    running = [begin()]
    try:
        wait(lambda: _epoch(db) == 1, every=0.05)
        for epoch in range(2, kills + 2):
            running.append(begin())
            wait(lambda: _connected(db) == 2, every=0.05)
            time.sleep(0.5)  # it has been standing by for a while
            leader = running.pop(0)
            began = time.perf_counter()
            leader.kill()
            batch = batches.accept(db, NewBatch(owner, spec=SPEC)).id
            wait(lambda epoch=epoch: _epoch(db) == epoch, every=0.002)  # type: ignore[misc]
            led = time.perf_counter() - began
            wait(lambda batch=batch: _placed(db, batch), every=0.002)  # type: ignore[misc]
            found.append((led, time.perf_counter() - began))
            leader.wait()
    finally:
        for process in running:
            process.kill()
            process.wait()
    return found


def _epoch(db: Database) -> int:
    row = db.one("SELECT epoch FROM leader")
    return row["epoch"] if row else 0


def _placed(db: Database, batch: int) -> bool:
    return bool(db.all("SELECT FROM leases WHERE batch_id = %(batch)s", {"batch": batch}))


def _connected(db: Database) -> int:
    """Dispatchers with the connection by which they lead or stand by, beside that of their pool."""
    rows = db.all(
        """SELECT application_name FROM pg_stat_activity
           WHERE application_name LIKE 'farm-dispatcher-%%' GROUP BY 1 HAVING count(*) > 1"""
    )
    return len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp") as folder,
        postgres(Path(folder)) as (url, _),
        Database(url) as db,
    ):
        broker = valkey.start(Path(folder))
        environment = {
            **os.environ,
            "FARM_DATABASE_URL": url,
            "FARM_BROKER_URL": sockets.urls(Path(folder))[1],
            "FARM_STORAGE_URL": f"{folder}/images",
            "FARM_LOG_LEVEL": "ERROR",
        }
        try:
            print(f"{kills} kills, load {os.getloadavg()[0]:.1f}")
            found = takeovers(db, environment, kills)
        finally:
            broker.terminate()
            broker.wait()
    for place, name in enumerate(("another leads", "a job is placed")):
        seconds = [each[place] for each in found]
        told = f"p50 {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s"
        print(f"  {name:16} {told}")


if __name__ == "__main__":
    main()

"""Whether removing what is old takes longer where there is more of everything.

    .venv/bin/python bench/pruning.py [--jobs 500000 5000000] [--slices 60]

Starts a Postgres of its own, and fills it with batches of 5000 jobs that have ended, each job with
its outcome, attempt and image row as long as real ones. Then it does what the housekeeper does,
slice by slice and without its pauses: batches are marked, the rows of marked ones erased, and
attempts of others forgotten. Milliseconds of a slice, on the clock, in a table and in one ten times
as large.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.postgres import postgres  # noqa: E402
from farm.db import retention, users  # noqa: E402
from farm.db.database import Database  # noqa: E402
from farm.dispatch.housekeeping import BATCHES, ROWS  # noqa: E402

EACH = 5000
"""Jobs of a batch."""

TABLES = ("outcomes", "attempts", "images")
BATCH = f"""
INSERT INTO batches (user_id, name, state, priority, total, cursor, spec, created_at, ended_at,
                     swept_at)
SELECT %(user)s, '', 'done', 50, {EACH}, {EACH}, '{{}}', g.at - interval '1 hour', g.at, g.at
FROM (SELECT now() - interval '400 days' + n * interval '1 minute' AS at
      FROM generate_series(1, %(batches)s) n) g
"""
ROWS_OF = {
    "outcomes": """(batch_id, ord, attempt, state, ended_at)
        SELECT b.id, o, 1, 'succeeded', b.ended_at""",
    "attempts": """(batch_id, ord, attempt, session_id, worker, result, assigned_at, started_at,
                    ended_at, units, gpu_seconds, queue_seconds, denoise_seconds, decode_seconds,
                    steps, checkpoint, precision)
        SELECT b.id, o, 1, '0123456789abcdef', 'gpu0', 'succeeded', b.ended_at, b.ended_at,
               b.ended_at, 1, 2, 60, 2, 0.1, 20, 'anime/v3', 'float16'""",
    "images": """(batch_id, ord, attempt, path, thumb_path, mime, sha256, width, height, bytes,
                  infotext, created_at)
        SELECT b.id, o, 1, format('batches/%s/%s-1.png', b.id, o),
               format('batches/%s/%s-1.thumb.webp', b.id, o), 'image/png',
               sha256(int8send(b.id * 10000 + o)), 512, 512, 400000, repeat('a red apple ', 28),
               b.ended_at""",
}


def fill(db: Database, jobs: int) -> float:
    """So many jobs that have ended long ago, and no others; seconds."""
    began = time.perf_counter()
    owner = users.local(db).id
    with db.connection() as connection:
        connection.execute("TRUNCATE batches, outcomes, attempts, images CASCADE")
        connection.execute(BATCH, {"user": owner, "batches": jobs // EACH})
    for table in TABLES:
        with db.connection() as connection:
            connection.execute(
                f"""INSERT INTO {table} {ROWS_OF[table]}
                    FROM batches b CROSS JOIN generate_series(0, {EACH - 1}) o ORDER BY b.id, o"""
            )
    with db.connection() as connection:
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE batches, outcomes, attempts, images")
        connection.execute("CHECKPOINT")
        connection.autocommit = False
    return time.perf_counter() - began


def erasing(db: Database) -> None:
    """A slice of what is marked, as in the housekeeper."""
    batch = retention.hidden(db)
    assert batch is not None
    if not retention.erase(db, batch.id, limit=ROWS):
        retention.bury(db, batch.id)


def measure(db: Database, slices: int) -> None:
    """Print what slices take. What is removed is a small part of what there is, each time alike."""
    told = {
        f"mark {BATCHES} batches": (lambda: retention.prune(db, days=300, limit=BATCHES), 1),
        f"erase {ROWS} rows of each table": (lambda: erasing(db), slices),
        f"forget {ROWS} attempts": (lambda: retention.trim(db, days=90, limit=ROWS), slices),
        "see that nothing is to be swept": (lambda: retention.unswept(db, seconds=86400), slices),
    }
    for name, (work, times) in told.items():
        _print(name, [_timed(work) for _ in range(times)])


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _print(name: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    p95 = ordered[max(0, round(0.95 * len(ordered)) - 1)]
    p50 = statistics.median(ordered)
    told = f"p50 {1000 * p50:7.1f}, p95 {1000 * p95:7.1f}, longest {1000 * ordered[-1]:7.1f} ms"
    print(f"    {name:32} {told}", flush=True)


def _size(db: Database) -> str:
    row = db.one("SELECT pg_size_pretty(pg_database_size(current_database())) AS size")
    assert row
    return str(row["size"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, nargs="+", default=[500_000, 5_000_000])
    parser.add_argument("--slices", type=int, default=60)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp") as folder,
        postgres(Path(folder)) as (url, _),
        Database(url) as db,
    ):
        for jobs in options.jobs:
            took = fill(db, jobs)
            load = os.getloadavg()[0]
            print(f"{jobs} jobs, {_size(db)}, filled in {took:.0f} s, load {load:.1f}", flush=True)
            measure(db, options.slices)


if __name__ == "__main__":
    main()

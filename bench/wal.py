"""What Postgres writes ahead for a job, taken apart.

    .venv/bin/python bench/wal.py [--jobs 2048] [--together 32]

Starts a Postgres of its own, and takes jobs from a batch to their images with Farm's statements, in
groups. Images and statistics are as long as real ones. Full images of pages are left out: how many
there are depends on how often Postgres writes its checkpoints. Bytes do not depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.postgres import postgres  # noqa: E402
from farm.db import sessions  # noqa: E402
from farm.db.database import Database  # noqa: E402
from farm.db.sessions import NewSession  # noqa: E402
from tests.wal import MOVES, live, position, written  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2048)
    parser.add_argument("--together", type=int, default=32)
    arguments = parser.parse_args()
    jobs, together = arguments.jobs, arguments.together
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp") as folder,
        postgres(Path(folder)) as (url, _),
        Database(url) as db,
    ):
        with db.connection() as connection:
            connection.execute("CREATE EXTENSION pg_walinspect")
        new = NewSession("0123456789abcdef", "gpu-host-0", "gpu-host", 1, {}, "24gb", 64)
        sessions.open(db, new, lease=3600)
        live(db, new.id, jobs=512, together=together)
        first = position(db)
        live(db, new.id, jobs=jobs, together=together)
        found = written(db, first)
    bytes_of: Counter[str] = Counter()
    for one in found:
        bytes_of[one.relation] += one.bytes
        if one.bytes > jobs:
            each = f"{one.records / jobs:6.2f} records, {one.bytes / jobs:7.1f} bytes a job"
            print(f"  {one.relation:20} {one.kind:24} {each}")
    moves = sum(count for name, count in bytes_of.items() if name.removesuffix("_pkey") in MOVES)
    print(f"  moves {moves / jobs:.0f} bytes a job, all {sum(bytes_of.values()) / jobs:.0f}")


if __name__ == "__main__":
    main()

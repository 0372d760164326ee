"""What a job costs in the log of Postgres does not grow unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from farm.db import sessions
from farm.db.database import Database
from farm.db.sessions import NewSession
from tests.databases import Databases
from tests.wal import MOVES, live, position, written

JOBS = 256


@pytest.fixture
def db(databases: Databases) -> Iterator[Database]:
    """A database whose pages were never used."""
    with Database(databases.make("farm_wal")) as db:
        yield db
    databases.drop("farm_wal")


def test_a_job_costs_few_bytes_and_its_updates_touch_no_index(db: Database) -> None:
    with db.connection() as connection:
        connection.execute("CREATE EXTENSION pg_walinspect")
    new = NewSession("0123456789abcdef", "gpu-host-0", "gpu-host", 1, {}, "24gb", 64)
    sessions.open(db, new, lease=600)
    live(db, new.id, jobs=JOBS, together=32)  # pages are new to no one after that
    first = position(db)
    live(db, new.id, jobs=JOBS, together=32)
    found = written(db, first)
    bytes_of: Counter[str] = Counter()
    records: Counter[str] = Counter()
    for one in found:
        bytes_of[one.relation.removesuffix("_pkey")] += one.bytes
        records[one.kind] += one.records
    told = "\n".join(map(str, found))
    # An index more, or a column of text, is seen.
    assert sum(bytes_of[table] for table in MOVES) / JOBS < 590, told
    assert sum(bytes_of.values()) / JOBS < 1650, told
    updates = records["Heap HOT_UPDATE"] + records["Heap UPDATE"]
    assert updates >= JOBS
    assert records["Heap UPDATE"] < 0.05 * updates, told

"""What Postgres writes ahead, by relation and kind of record; full images of pages left out."""

from __future__ import annotations

from dataclasses import dataclass

from farm.db import batches, leases, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim, Ending
from farm.spec.batch import BatchSpec
from farm.spec.moves import Move
from tests.records import TEMPLATE, TYPICAL_IMAGE, TYPICAL_STATS

MOVES = ("batches", "leases", "outcomes", "batch_progress")
"""The tables that a job moves through; others keep what came of it."""

_RECORDS = """
SELECT c.relname AS relation, r.kind, count(*) AS records, sum(r.bytes)::bigint AS bytes
FROM (SELECT start_lsn, resource_manager || ' ' || record_type AS kind,
             (array_agg(relfilenode ORDER BY block_id))[1] AS node,
             max(record_length) - sum(block_fpi_length) AS bytes
      FROM pg_get_wal_block_info(%(first)s, pg_current_wal_insert_lsn())
      WHERE reldatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
      GROUP BY start_lsn, kind) r
JOIN pg_class c ON c.relfilenode = r.node AND c.relnamespace = 'public'::regnamespace
GROUP BY c.relname, r.kind ORDER BY bytes DESC
"""


@dataclass(frozen=True)
class Written:
    """Records of one kind for one table or index; a record for several counts for the first."""

    relation: str
    kind: str
    records: int
    bytes: int


def position(db: Database) -> str:
    """Where the log ends now."""
    row = db.one("SELECT pg_current_wal_insert_lsn()::text AS position")
    assert row
    return str(row["position"])


def written(db: Database, first: str) -> list[Written]:
    """What was written for this database's tables since, most bytes first. Needs the extension
    pg_walinspect."""
    return [Written(**row) for row in db.all(_RECORDS, {"first": first})]


def live(db: Database, session: str, *, jobs: int, together: int) -> None:
    """Take jobs from their batch to their images, as the farm does: in groups."""
    spec = BatchSpec(template=TEMPLATE, count=jobs)
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id
    for first in range(0, jobs, together):
        held = leases.claim(db, [Claim(batch, session, count=together, first=first)])
        leases.start_group(db, session, [(lease[:3], False) for lease in held])
        endings = [
            Ending(*lease[:3], Move.SUCCEED, image=TYPICAL_IMAGE, stats=TYPICAL_STATS)
            for lease in held
        ]
        assert len(leases.end(db, session, "gpu-host-0", endings)) == len(held)

"""Inputs: the jobs of a batch that are listed one by one, and where others begin that need
something else of a worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

from farm.db.database import Connection, Database
from farm.spec.cells import DECISIVE
from farm.spec.job import JobSpec

MARKED = 1024
"""Of so many jobs that need the same one is marked, so that what any of them needs is found among
few, and the others take no room."""

_HASHES = 4096
"""Answers that are kept: most lists ask for few different things."""

# From one sort to the next, and of each the first job: however many there are of it.
_SORTS = """
WITH RECURSIVE sort AS (
    (SELECT needs, ord, 1 AS number FROM inputs
     WHERE batch_id = %(batch_id)s AND needs > %(after)s ORDER BY needs, ord LIMIT 1)
    UNION ALL
    SELECT n.needs, n.ord, s.number + 1
    FROM sort s CROSS JOIN LATERAL (
        SELECT needs, ord FROM inputs
        WHERE batch_id = %(batch_id)s AND needs > s.needs ORDER BY needs, ord LIMIT 1) n
    WHERE s.number < %(limit)s
)
SELECT s.needs, i.spec
FROM sort s CROSS JOIN LATERAL (
    SELECT spec FROM inputs WHERE batch_id = %(batch_id)s AND ord = s.ord OFFSET 0) i
ORDER BY s.needs
"""

# What the job itself needs says the last mark up to it. FILTER, as the index of marks would be read
# for all of the batch.
_FOLLOWING = """
SELECT CASE WHEN own.needs = %(needs)s THEN %(ord)s::bigint ELSE (
    SELECT ord FROM inputs
    WHERE batch_id = %(batch_id)s AND needs = %(needs)s AND ord > %(ord)s
    ORDER BY ord LIMIT 1) END AS ord
FROM (SELECT (array_agg(needs ORDER BY ord DESC) FILTER (WHERE needs IS NOT NULL))[1] AS needs
      FROM inputs
      WHERE batch_id = %(batch_id)s AND ord BETWEEN %(mark)s AND %(ord)s) own
"""


def store(
    connection: Connection, batch_id: int, jobs: Iterable[JobSpec], *, first: int = 0
) -> None:
    """Store listed jobs from number ``first`` on: what was given, no defaults."""
    before: int | None = None
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY inputs (batch_id, ord, spec, needs) FROM STDIN") as copy,
    ):
        for ord, job in enumerate(jobs, start=first):
            needs = _hashed(
                *(getattr(job, field) for field in DECISIVE), job.denoising_strength > 0
            )
            marked = needs != before or ord % MARKED == 0
            copy.write_row(
                (batch_id, ord, job.model_dump_json(exclude_unset=True), needs if marked else None)
            )
            before = needs


def sorts(
    db: Database, batch_id: int, *, after: int | None = None, limit: int
) -> Sequence[tuple[int, JobSpec]]:
    """What different things the listed jobs of a batch need of a worker: each as a number, in
    order, and a job that needs it.

    Args:
        after: only those of higher numbers.
    """
    lowest = -(2**63) if after is None else after
    rows = db.all(_SORTS, {"batch_id": batch_id, "after": lowest, "limit": limit})
    return [(row["needs"], JobSpec.model_validate(row["spec"])) for row in rows]


def following(db: Database, batch_id: int, needs: int, ord: int) -> int | None:
    """The first listed job from number ``ord`` on that needs that; see :func:`sorts`."""
    values = {"batch_id": batch_id, "needs": needs, "ord": ord, "mark": ord // MARKED * MARKED}
    row = db.one(_FOLLOWING, values)
    assert row is not None
    return None if row["ord"] is None else int(row["ord"])


@lru_cache(maxsize=_HASHES)
def _hashed(*needs: object) -> int:
    """The same in every process; never the lowest, behind which :func:`sorts` begin."""
    digest = blake2b(repr(needs).encode(), digest_size=8).digest()
    return max(int.from_bytes(digest, "big", signed=True), 1 - 2**63)

"""What calls of models were measured to take, by kind of card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

from psycopg.types.json import Jsonb

from farm.db.database import Database
from farm.spec.measurement import Call, Measurement

KEPT_DAYS = 30
"""A measurement older than that is not read: what ran out of memory may have its chance again."""

_CALL = tuple(field.name for field in fields(Call))

_KNOWN = """
SELECT work, family, parameters, dtype, mode, pixels, rows, seconds, bytes, outside, failed
FROM measurements
WHERE card = %(card)s AND torch = %(torch)s
  AND measured_at > now() - make_interval(days => %(days)s)
"""

# Two workers may measure the same call on two cards: the larger of what they took counts. In order,
# lest each wait for the other.
_RECORD = """
INSERT INTO measurements AS known
    (card, torch, work, family, parameters, dtype, mode, pixels, rows,
     seconds, bytes, outside, failed)
SELECT %(card)s, %(torch)s, work, family, parameters, dtype, mode, pixels, rows,
       seconds, bytes, outside, failed
FROM jsonb_to_recordset(%(told)s) AS told
    (work text, family text, parameters bigint, dtype text, mode text, pixels bigint, rows integer,
     seconds double precision, bytes bigint, outside bigint, failed boolean)
ORDER BY work, family, parameters, dtype, mode, pixels, rows
ON CONFLICT (card, torch, work, family, parameters, dtype, mode, pixels, rows) DO UPDATE
SET seconds = coalesce(excluded.seconds, known.seconds),
    bytes = greatest(excluded.bytes, known.bytes),
    outside = coalesce(excluded.outside, known.outside),
    failed = excluded.failed,
    measured_at = now()
"""


def known(db: Database, *, card: str, torch: str) -> list[Measurement]:
    """What was measured of late on cards of this name, with this version of torch."""
    rows = db.all(_KNOWN, {"card": card, "torch": torch, "days": KEPT_DAYS})
    return [_measurement(row) for row in rows]


def record(db: Database, told: Iterable[Measurement], *, card: str, torch: str) -> None:
    """Keep measurements, each call at most once."""
    flat = [asdict(one.call) | _taken(one) for one in told]
    with db.connection() as connection:
        connection.execute(_RECORD, {"told": Jsonb(flat), "card": card, "torch": torch})


def _measurement(row: dict[str, Any]) -> Measurement:
    call = Call(**{name: row[name] for name in _CALL})
    return Measurement(call, **{name: row[name] for name in row if name not in _CALL})


def _taken(one: Measurement) -> dict[str, Any]:
    return {
        "seconds": one.seconds,
        "bytes": one.bytes,
        "outside": one.outside,
        "failed": one.failed,
    }

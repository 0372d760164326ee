"""Stock: the models that each host has, by what its workers say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from farm.db.assets import CHECKPOINT, UPSCALER
from farm.db.database import Database

_STOCK = """
SELECT host,
       array_agg(name) FILTER (WHERE kind = %(checkpoint)s AND error IS NULL) AS checkpoints,
       array_agg(name) FILTER (WHERE kind = %(upscaler)s AND error IS NULL) AS upscalers
FROM asset_files GROUP BY host
"""


@dataclass(frozen=True)
class Stock:
    """The usable checkpoints and upscalers by host. A host that is not there has not said, and may
    have any."""

    checkpoints: Mapping[str, frozenset[str]] = field(default_factory=dict)
    upscalers: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def has(self, host: str, checkpoints: Iterable[str], upscalers: Iterable[str] = ()) -> bool:
        """Whether a host has all these, as far as is known."""
        wanted, models = frozenset(checkpoints), frozenset(upscalers)
        return wanted <= self.checkpoints.get(host, wanted) and models <= self.upscalers.get(
            host, models
        )


def stock(db: Database) -> Stock:
    """What all hosts have that have registered any file."""
    rows = db.all(_STOCK, {"checkpoint": CHECKPOINT, "upscaler": UPSCALER})
    return Stock(
        checkpoints={row["host"]: frozenset(row["checkpoints"] or ()) for row in rows},
        upscalers={row["host"]: frozenset(row["upscalers"] or ()) for row in rows},
    )

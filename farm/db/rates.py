"""What jobs of each checkpoint, and its loads, have taken of late on each card."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from psycopg.rows import DictRow

from farm.db.database import Database

# In the order of pages, not of time: any of them will do, and none is sorted. A job that waited
# for a load was charged a part of that, so it counts only where there are no others.
_MEASURED = """
SELECT checkpoint, coalesce(s.device ->> 'name', s.profile, '') AS card,
       coalesce(sum(units) FILTER (WHERE load = 0), sum(units)) AS units,
       coalesce(sum(seconds) FILTER (WHERE load = 0), sum(seconds)) AS seconds,
       avg(load) FILTER (WHERE load > 0) AS load
FROM (SELECT session_id, checkpoint, units::float AS units,
             gpu_seconds::float - coalesce((stats ->> 'upscale_seconds')::float, 0) AS seconds,
             coalesce(load_seconds::float, 0) AS load
      FROM attempts
      WHERE ended_at > now() - make_interval(hours => %(hours)s) AND result = 'succeeded'
      LIMIT 20000) a
LEFT JOIN sessions s ON s.id = a.session_id
WHERE units > 0 AND seconds > 0 AND checkpoint IS NOT NULL
GROUP BY 1, 2
"""

# Of the same attempts: what models that enlarge pictures took of them.
_ENLARGED = """
SELECT upscaler, coalesce(s.device ->> 'name', s.profile, '') AS card,
       sum(size) AS size, sum(seconds) AS seconds
FROM (SELECT session_id, stats ->> 'upscaler' AS upscaler, (stats ->> 'upscaled')::float AS size,
             (stats ->> 'upscale_seconds')::float AS seconds
      FROM attempts
      WHERE ended_at > now() - make_interval(hours => %(hours)s) AND result = 'succeeded'
      LIMIT 20000) a
LEFT JOIN sessions s ON s.id = a.session_id
WHERE size > 0 AND seconds >= 0
GROUP BY 1, 2
"""

WINDOWS = (1, 24, 24 * 30)
"""Hours to look back, until something is found."""


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        rates: GPU-seconds a unit of work (:func:`farm.dispatch.cost.units`) on a card of speed 1,
            by checkpoint.
        loads: seconds of a load, of the checkpoints that were loaded.
        speeds: of cards, relative to the one that did most, which comes first.
        upscales: GPU-seconds of models that enlarge pictures, for each 512x512 pixels that they
            are shown (:func:`farm.dispatch.cost.upscaled`), by model.
    """

    rates: dict[str, float] = field(default_factory=dict)
    loads: dict[str, float] = field(default_factory=dict)
    speeds: dict[str, float] = field(default_factory=dict)
    upscales: dict[str, float] = field(default_factory=dict)


def measured(db: Database) -> Measured:
    """What jobs that ended of late have taken."""
    for hours in WINDOWS:
        if found := db.all(_MEASURED, {"hours": hours}):
            return compared(found, db.all(_ENLARGED, {"hours": hours}))
    return Measured()


def compared(rows: Sequence[DictRow], enlarged: Sequence[DictRow] = ()) -> Measured:
    """What ``units``, ``seconds`` and ``load`` of each ``checkpoint`` and ``card`` say together.

    Args:
        enlarged: ``size`` and ``seconds`` of each ``upscaler`` and ``card``.
    """
    speeds = _speeds(rows)
    units: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    loads: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        units[row["checkpoint"]] += row["units"]
        seconds[row["checkpoint"]] += row["seconds"] * speeds[row["card"]]
        if row["load"]:
            loads[row["checkpoint"]].append(row["load"])
    return Measured(
        rates={name: seconds[name] / size for name, size in units.items()},
        loads={name: fmean(taken) for name, taken in loads.items()},
        speeds=speeds,
        upscales=_upscales(enlarged, speeds),
    )


def _upscales(rows: Sequence[DictRow], speeds: Mapping[str, float]) -> dict[str, float]:
    size: dict[str, float] = defaultdict(float)
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        size[row["upscaler"]] += row["size"]
        seconds[row["upscaler"]] += row["seconds"] * speeds.get(row["card"], 1.0)
    return {name: seconds[name] / much for name, much in size.items()}


def _speeds(rows: Sequence[DictRow]) -> dict[str, float]:
    """Cards that have made jobs of the same checkpoints can be compared; others are taken for
    alike."""
    done: dict[str, float] = defaultdict(float)
    rates: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        done[row["card"]] += row["units"]
        rates[row["card"]][row["checkpoint"]] = row["seconds"] / row["units"]
    first, *others = sorted(done, key=lambda card: -done[card])
    speeds = {first: 1.0}
    for card in others:
        both = rates[first].keys() & rates[card].keys()
        ratios = [rates[first][name] / rates[card][name] for name in both]
        speeds[card] = median(ratios) if ratios else 1.0
    return speeds

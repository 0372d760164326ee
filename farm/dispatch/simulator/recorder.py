"""From what a farm did to a trace of it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from farm.db.recording import Recording
from farm.dispatch.cost import Costs
from farm.dispatch.simulator.trace import Batch, Card, Checkpoint, Part, Trace, User
from farm.errors import NotFound

WEIGHTS = 0.6
"""Of a card's memory, what checkpoints may take, as in the memory profiles."""
_UNKNOWN = 2**31


def trace_of(recording: Recording) -> Trace:
    """The trace of a recording; what jobs, loads and cards take is learnt from its attempts.

    Raises:
        NotFound: no job succeeded in that time, or no worker was there.
    """
    if not recording.batches or not recording.workers:
        raise NotFound(
            "There is nothing to record: no batch of that time has an image.",
            field="days",
            remedy="Look further back with --days, or simulate a synthetic trace.",
        )
    costs = _costs(recording)
    names = dict.fromkeys(row["checkpoint"] for row in recording.batches)
    known = recording.sizes
    return Trace(
        cards=tuple(_card(row, costs) for row in recording.workers),
        checkpoints={n: Checkpoint(n, known.get(n, _UNKNOWN), costs.load(n)) for n in names},
        users={row["id"]: User(**row) for row in recording.users},
        batches=_batches(recording, costs),
    )


def _costs(recording: Recording) -> Costs:
    costs = Costs()
    for row in recording.taken:
        if row["load"]:
            costs.learn_load(row["checkpoint"], row["load"])
        else:
            costs.learn(row["checkpoint"], row["units"], row["seconds"], row["card"])
    return costs


def _card(row: dict[str, Any], costs: Costs) -> Card:
    kind = str(row["device"].get("name", ""))
    memory = row["fits"].get("memory") or row["device"].get("total_bytes") or 8 * _UNKNOWN
    return Card(row["worker"], kind, costs.speed(kind), int(memory * WEIGHTS), row["capacity"])


def _batches(recording: Recording, costs: Costs) -> tuple[Batch, ...]:
    first = recording.batches[0]["at"]
    found = []
    for _, grouped in groupby(recording.batches, key=lambda row: row["id"]):
        rows = list(grouped)
        parts = tuple(
            Part(r["checkpoint"], r["jobs"], costs.estimate(r["checkpoint"], r["size"]), r["size"])
            for r in rows
        )
        found.append(Batch(rows[0]["at"] - first, rows[0]["user_id"], rows[0]["priority"], parts))
    return tuple(found)

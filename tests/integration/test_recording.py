"""A trace of what a farm did."""

from __future__ import annotations

import pytest

from farm.db import assets, batches, leases, sessions, users
from farm.db.assets import Asset
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim, Ending
from farm.db.recording import record
from farm.db.sessions import NewSession
from farm.dispatch.simulator.policies import ours
from farm.dispatch.simulator.recorder import trace_of
from farm.dispatch.simulator.trace import lines, read
from farm.dispatch.simulator.world import World
from farm.errors import NotFound
from farm.spec.batch import BatchSpec
from farm.spec.moves import Move
from tests.records import IMAGE, TEMPLATE

UNITS = 40.0


def made(db: Database, session: str, checkpoint: str, taken: list[tuple[float, float]]) -> int:
    """A batch whose jobs took so many (GPU-seconds, seconds of loading) on a session."""
    spec = BatchSpec(template={**TEMPLATE, "checkpoint": checkpoint}, count=len(taken))
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec, priority=60)).id
    placed = leases.claim(db, [Claim(batch, session, count=len(taken))])
    for lease, (seconds, load) in zip(placed, taken, strict=True):
        assert leases.start(db, lease)
        stats = {
            "checkpoint": checkpoint,
            "units": UNITS,
            "gpu_seconds": seconds,
            "load_seconds": load,
        }
        image = {**IMAGE, "path": f"{batch}-{lease.ord}.png"}
        ending = Ending(batch, lease.ord, lease.attempt, Move.SUCCEED, image=image, stats=stats)
        leases.end(db, session, session, [ending])
    return batch


def worker(db: Database, name: str, card: str) -> None:
    device = {"name": card, "total_bytes": 10 * 2**30}
    sessions.open(db, NewSession(name, name, "host", 1, device, "24gb", 6), lease=60)


def test_a_farm_is_recorded_and_can_be_simulated(db: Database) -> None:
    assets.register(db, "host", [Asset("demo", "sd15", 2**31, "/m", {}, None)])
    worker(db, "gpu0", "slow")
    worker(db, "gpu1", "fast")
    made(db, "gpu0", "demo", [(9.0, 5.0)] + [(4.0, 0.0)] * 30)
    made(db, "gpu1", "demo", [(2.0, 0.0)] * 30)

    trace = trace_of(record(db, days=1))

    assert [len(batch.parts) for batch in trace.batches] == [1, 1]
    assert [batch.parts[0].jobs for batch in trace.batches] == [31, 30]
    assert {batch.priority for batch in trace.batches} == {60}
    assert trace.batches[0].at == 0.0
    assert trace.checkpoints["demo"].load_seconds == pytest.approx(5.0)
    assert [(card.name, card.kind, card.places) for card in trace.cards] == [
        ("gpu0", "slow", 6),
        ("gpu1", "fast", 6),
    ]
    assert trace.cards[0].speed == 1.0
    assert trace.cards[1].speed > 1.1
    assert read(lines(trace)) == trace
    assert World(trace, ours).run().done == 61


def test_what_came_before_is_left_out(db: Database) -> None:
    worker(db, "gpu0", "card")
    made(db, "gpu0", "demo", [(4.0, 0.0)])
    db.one("UPDATE batches SET created_at = now() - interval '3 days' RETURNING id")
    with pytest.raises(NotFound, match="nothing to record"):
        trace_of(record(db, days=2))
    assert trace_of(record(db, days=4)).jobs == 1

"""A batch over two checkpoints of which one host has the first and another one the second: what
waits for one of them holds up nothing that the other could make, and is not forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import psycopg
import pytest

from farm.broker.queue import Publisher
from farm.db import assets, backlog, batches, forecasts, jobs, leases, quotas, reasons, sessions
from farm.db import users as people
from farm.db.assets import Asset
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Ending, Lease
from farm.db.sessions import NewSession
from farm.dispatch.dispatcher import Dispatcher
from farm.dispatch.reach import reach
from farm.dispatch.why import Place, explain
from farm.errors import QuotaExceeded
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.moves import Move
from tests.records import IMAGE, TEMPLATE

HAS = {"a": "s-one", "b": "s-other"}
"""The session of the host that has a checkpoint."""
EACH = 4
"""Jobs of the batch on each checkpoint."""


@pytest.fixture
def leaders(db: Database, broker_url: str) -> Iterator[Iterator[Dispatcher]]:
    """One dispatcher after the other, each of which knows only what is in Postgres."""
    publisher = Publisher(broker_url)
    yield (Dispatcher(db, publisher) for _ in range(10**6))
    publisher.close()


@pytest.fixture(autouse=True)
def sessions_of_both(db: Database) -> None:
    for name, session in HAS.items():
        assets.register(db, f"host-{name}", [Asset(name, "sd15", 1, f"/{name}", {}, None)])
        new = NewSession(session, f"gpu-{name}", f"host-{name}", 1, {}, "cpu", 2)
        sessions.open(db, new, lease=600)


def submit(db: Database, names: str, *, each: int = EACH, listed: bool = False) -> int:
    template = {**TEMPLATE, "checkpoint": names[0]}
    spec = BatchSpec(template=template, axes=(("checkpoint", tuple(names)),), count=each)
    new = NewBatch(people.local(db).id, spec=spec)
    if listed:
        lines = [JobSpec(**{**TEMPLATE, "checkpoint": name}) for name in names]
        new = NewBatch(people.local(db).id, jobs=lines)
    return batches.accept(db, new).id


def held(db: Database) -> list[Lease]:
    rows = db.all("SELECT batch_id, ord, attempt, session_id FROM leases ORDER BY batch_id, ord")
    return [Lease(**row) for row in rows]


def end(db: Database, lease: Lease, move: Move) -> None:
    leases.start(db, lease)
    image = IMAGE if move is Move.SUCCEED else None
    assert leases.end(db, lease.session_id, "gpu", [Ending(*lease[:3], move, image=image)])


def split(db: Database, leader: Dispatcher) -> int:
    """A batch whose second half has begun, while the host of its first is busy with others."""
    submit(db, "a", each=2)
    leader.cycle()
    batch = submit(db, "ab")
    leader.cycle()
    assert [(one.ord, one.session_id) for one in held(db) if one.batch_id == batch] == [
        (EACH, HAS["b"]),
        (EACH + 1, HAS["b"]),
    ]
    assert spans(db, batch) == ((0, EACH), (EACH + 2, 2 * EACH))
    return batch


def spans(db: Database, batch: int) -> tuple[tuple[int, int], ...]:
    return next(
        (
            one.spans
            for one in backlog.open_batches(db, least=0, each=99, limit=99)
            if one.id == batch
        ),
        (),
    )


def work_off(db: Database, leaders: Iterator[Dispatcher], *, again: int = 0) -> None:
    """Make all that waits, each round under another leader; so many jobs are given back first."""
    for leader in islice(leaders, 50):
        leader.cycle()
        for lease in held(db):
            end(db, lease, Move.RELEASE if again > 0 else Move.SUCCEED)
            again -= 1
        if not held(db) and not db.all("SELECT FROM requeue") and not waiting(db):
            return
    raise AssertionError("something is never made")


def waiting(db: Database) -> int:
    return sum(one["waiting"] for one in people.shares(db))


def test_an_idle_host_goes_on_with_what_it_has(db: Database, leaders: Iterator[Dispatcher]) -> None:
    leader = next(leaders)
    batch = split(db, leader)
    for lease in held(db):
        end(db, lease, Move.SUCCEED)
    leader.cycle()
    assert {(one.ord, one.session_id) for one in held(db) if one.batch_id == batch} == {
        (0, HAS["a"]),
        (1, HAS["a"]),
        (EACH + 2, HAS["b"]),
        (EACH + 3, HAS["b"]),
    }


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("again", [0, 5])
def test_every_job_is_made_once_where_its_checkpoint_is(
    db: Database, leaders: Iterator[Dispatcher], listed: bool, again: int
) -> None:
    names = "aabbabababab" if listed else "ab"
    submit(db, "a", each=3)
    batch = submit(db, names, listed=listed)
    work_off(db, leaders, again=again)
    rows = db.all(
        """SELECT a.ord, a.session_id FROM attempts a JOIN outcomes o USING (batch_id, ord, attempt)
           WHERE a.batch_id = %(id)s AND o.state = 'succeeded' ORDER BY a.ord""",
        {"id": batch},
    )
    wanted = names if listed else "a" * EACH + "b" * EACH
    assert [(row["ord"], row["session_id"]) for row in rows] == [
        (ord, HAS[name]) for ord, name in enumerate(wanted)
    ]
    next(leaders).cycle()
    assert batch in backlog.finish(db) or fetched(db, batch).ended_at
    assert fetched(db, batch).state == "done"


def fetched(db: Database, batch: int) -> batches.Batch:
    found = batches.fetch(db, batch)
    assert found
    return found


def test_what_no_host_takes_is_neither_made_nor_forgotten(
    db: Database, leaders: Iterator[Dispatcher]
) -> None:
    """All that is left waits for a host that takes nothing more: the batch has not ended."""
    sessions.drain(db, HAS["a"])
    batch = submit(db, "ab")
    for leader in islice(leaders, 3):
        leader.cycle()
        for lease in held(db):
            assert lease.ord >= EACH
            end(db, lease, Move.SUCCEED)
    assert batch not in backlog.finish(db)
    assert fetched(db, batch).counts["pending"] == EACH
    assert spans(db, batch) == ((0, EACH),)
    new = NewSession("s-new", "gpu-a", "host-a", 1, {}, "cpu", 2)
    sessions.open(db, new, lease=600)
    work_off(db, leaders)
    backlog.finish(db)
    assert fetched(db, batch).ended_at


def test_a_paused_batch_gives_nothing_of_any_span(
    db: Database, leaders: Iterator[Dispatcher]
) -> None:
    batch = split(db, next(leaders))
    batches.pause(db, batch)
    for lease in held(db):
        end(db, lease, Move.SUCCEED)
    next(leaders).cycle()
    assert held(db) == []
    assert batch not in backlog.finish(db)
    batches.resume(db, batch)
    next(leaders).cycle()
    assert len(held(db)) == 4


def test_a_cancelled_batch_ends_with_all_of_its_spans(
    db: Database, leaders: Iterator[Dispatcher]
) -> None:
    batch = split(db, next(leaders))
    for lease in held(db):
        end(db, lease, Move.SUCCEED)
    batches.cancel(db, batch)
    next(leaders).cycle()
    assert held(db) == []
    backlog.finish(db)
    found = fetched(db, batch)
    assert found.ended_at
    assert (found.counts["succeeded"], found.counts["cancelled"]) == (2, 2 * EACH - 2)
    assert jobs.page(db, batch, limit=99, state="pending") == []
    gone = [one.ord for one in jobs.page(db, batch, limit=99, state="cancelled")]
    assert gone == [*range(EACH), *range(EACH + 2, 2 * EACH)]


def test_a_batch_of_which_only_passed_over_jobs_are_left_can_be_cancelled(
    db: Database, leaders: Iterator[Dispatcher]
) -> None:
    sessions.close(db, HAS["a"])
    batch = submit(db, "ab", each=2)
    next(leaders).cycle()
    for lease in held(db):
        end(db, lease, Move.SUCCEED)
    found = batches.cancel(db, batch)
    assert found
    assert found.state == "cancelled"


def test_all_that_waits_is_counted(db: Database, leaders: Iterator[Dispatcher]) -> None:
    batch = split(db, next(leaders))
    left = 2 * EACH - 2
    assert waiting(db) == left
    listed = [one.ord for one in jobs.page(db, batch, limit=99, state="pending")]
    assert listed == [*range(EACH), *range(EACH + 2, 2 * EACH)]
    assert fetched(db, batch).counts["pending"] == left + 2, "with what is sent and not begun"
    [told] = [one for one in forecasts.left(db, limit=99) if one.id == batch]
    assert (told.jobs, told.in_flight) == (left + 2, 2)
    owner = people.local(db).id
    with db.connection() as connection:
        quotas.check(connection, owner, most=left, added=0)
    with pytest.raises(QuotaExceeded), db.connection() as connection:
        quotas.check(connection, owner, most=left - 1, added=0)


def test_why_a_job_in_a_later_span_waits(db: Database, leaders: Iterator[Dispatcher]) -> None:
    batch = split(db, next(leaders))

    def why(ord: int) -> str:
        spec = JobSpec(**{**TEMPLATE, "checkpoint": "ab"[ord >= EACH]})
        facts = reasons.facts(db, batch, ord, spec.checkpoint)
        assert facts
        return explain(Place(batch, "pending"), facts, reach(db, spec, ())).reason

    assert why(1) == "All places of gpu-a are taken; 1 job of its own batch go before it."
    assert why(EACH + 2) == "All places of gpu-b are taken."
    assert "1 job of its own batch" in why(EACH + 3)
    for lease in held(db):
        if lease.session_id == HAS["b"]:
            end(db, lease, Move.SUCCEED)
    assert "about to be placed" in why(EACH + 2)


def test_a_leader_that_knows_only_cursors_can_take_nothing_twice(
    db: Database, leaders: Iterator[Dispatcher]
) -> None:
    """Such as one of the version before: to take what is beyond the cursor again is refused."""
    batch = split(db, next(leaders))
    move = "UPDATE batches SET cursor = cursor + %(by)s WHERE id = %(id)s RETURNING cursor"
    assert db.one(move, {"id": batch, "by": EACH - 1}) == {"cursor": EACH - 1}
    with pytest.raises(psycopg.errors.CheckViolation):
        db.one(move, {"id": batch, "by": 2})

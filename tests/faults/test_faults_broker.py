"""Messages lost, doubled, late and in the wrong order: Postgres alone decides what is run."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
from redis import Redis
from redis.exceptions import RedisError

from farm.broker.queue import Publisher, queue_name
from farm.db.leases import Lease
from farm.embedded import sockets
from tests.conftest import eventually
from tests.saboteur import Saboteur


@pytest.fixture
def publisher(saboteur: Saboteur) -> Iterator[Publisher]:
    found = Publisher(sockets.urls(saboteur.farm.home)[1])
    yield found
    found.close()


def test_a_broker_that_forgets_everything(saboteur: Saboteur) -> None:
    batch = saboteur.begin()
    broker, wasted = saboteur.valkey(), saboteur.wasted()
    for wanted in (8, 16, 24):
        broker.flushall()
        eventually(lambda wanted=wanted: batch.refresh().counts["succeeded"] >= wanted)  # type: ignore[misc]
    saboteur.finish(batch)
    assert saboteur.wasted() == wasted


def test_a_broker_that_comes_back_empty(saboteur: Saboteur) -> None:
    """It keeps nothing on disk, and what is waiting in Postgres is all that there is to know."""
    batch = saboteur.begin(60)
    broker, wasted = saboteur.valkey(), saboteur.wasted()
    broker.set("mark", "here")
    assert broker.config_get("appendonly") == {"appendonly": "no"}
    saboteur.kill("valkey")
    eventually(lambda: _answers(broker))
    assert broker.get("mark") is None
    kept = [path for path in saboteur.farm.home.rglob("*") if path.suffix in {".rdb", ".aof"}]
    assert kept == []
    saboteur.finish(batch)
    assert saboteur.wasted() == wasted


def test_connections_to_the_broker_cut(saboteur: Saboteur) -> None:
    workers = [saboteur.process(name) for name in ("cpu0", "cpu1")]
    batch = saboteur.begin(60)
    broker, wasted = saboteur.valkey(), saboteur.wasted()
    for kind in ("normal", "pubsub", "normal"):
        broker.execute_command("CLIENT", "KILL", "TYPE", kind)
        done = batch.refresh().counts["succeeded"]
        eventually(lambda done=done: batch.refresh().counts["succeeded"] > done or batch.ended)  # type: ignore[misc]
    saboteur.finish(batch)
    assert saboteur.wasted() == wasted
    assert all(worker.is_running() for worker in workers)


def test_messages_twice_late_astray_and_out_of_order(
    saboteur: Saboteur, publisher: Publisher
) -> None:
    """Every message that there ever was comes again and again, to either worker."""
    batch = saboteur.begin(60)
    sent: set[tuple[int, int, int, str]] = set()
    with saboteur.farm.database() as db:
        sessions = [row["id"] for row in db.all("SELECT id FROM sessions WHERE ended_at IS NULL")]
        while not batch.refresh().ended:
            leased = db.all("SELECT batch_id, ord, attempt, session_id FROM leases")
            sent |= {tuple(row.values()) for row in leased}
            again = random.sample(sorted(sent), min(20, len(sent)))
            astray = [(*message[:3], random.choice(sessions)) for message in again]
            assert publisher.publish([*again, *again, *astray])
    ledger = saboteur.finish(batch)
    assert len(sent) > 20
    assert ledger.succeeded >= 60


HELD = """
SELECT batch_id, ord, attempt, session_id FROM leases
WHERE batch_id = %(batch)s AND started_at IS NOT NULL
"""
MADE = """
SELECT a.ord, a.attempt, a.session_id, a.result, a.started_at, a.ended_at, o.state, i.path, i.sha256
FROM attempts a LEFT JOIN outcomes o USING (batch_id, ord) LEFT JOIN images i USING (batch_id, ord)
WHERE a.batch_id = %(batch)s ORDER BY 1, 2
"""


def test_a_message_that_comes_again_changes_nothing(
    saboteur: Saboteur, publisher: Publisher
) -> None:
    """As one does whose visibility timeout has run out: to its worker and to the other one, while
    its image is being made, and when that is done."""
    batch = saboteur.begin(60)
    told, wasted = {"batch": int(batch.id)}, saboteur.wasted()
    with saboteur.farm.database() as db:
        sessions = [row["id"] for row in db.all("SELECT id FROM sessions WHERE ended_at IS NULL")]

        def again(held: Iterable[tuple[int, int, int]]) -> None:
            assert publisher.publish([Lease(*one, to) for one in held for to in sessions])

        running: set[tuple[int, int, int]] = set()
        while not batch.refresh().ended:
            held = {tuple(row.values())[:3] for row in db.all(HELD, told)}
            again(held)
            running |= held
        made = db.all(MADE, told)
        assert len(running) >= 10
        assert [row["state"] for row in made] == ["succeeded"] * 60, "one attempt for each"

        again(sorted(running))
        saboteur.finish(saboteur.begin(40))  # whose messages came after them
        assert db.all(MADE, told) == made
    assert saboteur.wasted() == wasted


def test_nothing_of_a_message_outlives_its_delivery(saboteur: Saboteur) -> None:
    """There is no visibility timeout to run out, and nothing is left of the dead."""
    batch = saboteur.begin()
    saboteur.kill("worker")
    saboteur.finish(batch)
    broker = saboteur.valkey()
    assert [key for key in broker.keys("*") if b"unacked" in key] == []
    with saboteur.farm.database() as db:
        dead = [row["id"] for row in db.all("SELECT id FROM sessions WHERE ended_at IS NOT NULL")]
    assert dead
    eventually(lambda: not broker.exists(*map(queue_name, dead)))


def _answers(broker: Redis) -> bool:
    try:
        return bool(broker.ping())
    except RedisError:
        return False

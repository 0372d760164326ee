"""Messages lost, doubled, late and in the wrong order: Postgres alone decides what is run."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from farm.broker.queue import Publisher, queue_name
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

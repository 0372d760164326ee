"""The starter: attempts in groups, each told its own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm.db import batches, leases, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim
from farm.db.sessions import NewSession
from farm.errors import Unavailable
from farm.spec.batch import BatchSpec
from farm.worker.starter import Starter
from tests.records import TEMPLATE


@pytest.fixture
def batch(db: Database) -> int:
    spec = BatchSpec(template=TEMPLATE, count=20)
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id
    sessions.open(db, NewSession("s", "cpu0", "host", 1, {}, "cpu", 8), lease=60)
    leases.claim(db, [Claim(batch, "s", count=20)])
    return batch


@pytest.fixture
def starter(db: Database, batch: int) -> Iterator[Starter]:
    found = Starter(db, "s")
    yield found
    found.stop()


def test_many_at_once_are_each_started_once(db: Database, batch: int, starter: Starter) -> None:
    # Every message comes twice; two name attempts that there are not.
    wanted = [(batch, ord, 1) for ord in range(19)] * 2 + [(batch, 19, 7), (batch + 1, 0, 1)]
    with ThreadPoolExecutor(len(wanted)) as threads:
        answers = list(threads.map(lambda job: starter.start(job, again=False), wanted))
    pairs = zip(answers[:19], answers[19:38], strict=True)
    assert [sum(map(bool, pair)) for pair in pairs] == [1] * 19
    assert answers[38:] == [None, None]
    assert len(db.all("SELECT FROM leases WHERE started_at IS NOT NULL")) == 19


def test_a_start_whose_answer_was_lost_is_repeated(batch: int, starter: Starter) -> None:
    assert starter.start((batch, 0, 1), again=False)
    assert starter.start((batch, 0, 1), again=False) is None
    assert starter.start((batch, 0, 1), again=True)


def test_without_postgres_whoever_waits_is_told(db: Database, batch: int, starter: Starter) -> None:
    db.close()
    with pytest.raises(Unavailable):
        starter.start((batch, 0, 1), again=False)

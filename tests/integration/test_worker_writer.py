"""The writer and the starter, when Postgres takes a statement and the answer is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from farm.db import batches, leases, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Connection, Database
from farm.db.leases import Claim, Ending, Lease
from farm.db.sessions import NewSession
from farm.errors import Unavailable
from farm.spec.batch import BatchSpec
from farm.spec.moves import Move
from farm.worker.writer import Writer
from tests.conftest import eventually
from tests.records import IMAGE, TEMPLATE


class LosesAnswers(Database):
    """Commits, and then loses the connection, so many times."""

    losses = 0

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        with super().connection() as connection:
            yield connection
        if self.losses:
            self.losses -= 1
            raise Unavailable("the answer was lost")


@pytest.fixture
def flaky(database_url: str) -> Iterator[LosesAnswers]:
    with LosesAnswers(database_url) as database:
        yield database


@pytest.fixture
def claimed(db: Database) -> list[Lease]:
    spec = BatchSpec(template=TEMPLATE, count=4)
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id
    sessions.open(db, NewSession("s", "cpu0", "host", 1, {}, "cpu", 8), lease=60)
    return leases.claim(db, [Claim(batch, "s", count=4)])


@pytest.mark.parametrize(
    ("move", "state"),
    [
        (Move.SUCCEED, "succeeded"),
        (Move.FAIL, "failed"),
        (Move.RETRY, "waiting"),
        (Move.RELEASE, "waiting"),
        (Move.STOP, "cancelled"),
    ],
)
def test_an_ending_whose_answer_was_lost_counts(
    db: Database, flaky: LosesAnswers, claimed: list[Lease], move: Move, state: str
) -> None:
    lease = claimed[0]
    leases.start(db, lease)
    image = IMAGE if move is Move.SUCCEED else None
    writer = Writer(flaky, "s", "cpu0")
    flaky.losses = 1
    assert writer.end(Ending(lease.batch_id, lease.ord, lease.attempt, move, image=image)) == state
    writer.stop()
    assert len(db.all("SELECT FROM attempts")) == 1


def test_a_fenced_ending_stays_fenced(
    db: Database, flaky: LosesAnswers, claimed: list[Lease]
) -> None:
    lease = claimed[0]
    leases.start(db, lease)
    sessions.close(db, "s")
    leases.reap(db, ["s"], crashed=True)
    writer = Writer(flaky, "s", "cpu0")
    flaky.losses = 1
    ending = Ending(lease.batch_id, lease.ord, lease.attempt, Move.SUCCEED, image=IMAGE)
    assert writer.end(ending) is None
    writer.stop()
    assert db.all("SELECT FROM images") == []


def test_a_start_whose_answer_was_lost_can_be_repeated(
    flaky: LosesAnswers, claimed: list[Lease]
) -> None:
    flaky.losses = 1
    with pytest.raises(Unavailable):
        leases.start(flaky, claimed[0])
    assert leases.start(flaky, claimed[0]) is None, "for anyone who does not know, it is a repeat"
    assert leases.start(flaky, claimed[0], again=True)


def test_endings_that_come_together_are_one_statement(
    db: Database, flaky: LosesAnswers, claimed: list[Lease]
) -> None:
    for lease in claimed:
        leases.start(db, lease)
    writer = Writer(flaky, "s", "cpu0")
    flaky.losses = 1  # while the first waits to be repeated, the others queue up
    with ThreadPoolExecutor() as threads:
        endings = [Ending(*lease[:3], Move.FAIL) for lease in claimed]
        assert list(threads.map(writer.end, endings)) == ["failed"] * 4
    writer.stop()
    stamps = db.all("SELECT DISTINCT ended_at FROM outcomes")
    assert len(stamps) < 4


def test_a_worker_that_stops_without_postgres_does_not_know(
    db: Database, flaky: LosesAnswers, claimed: list[Lease]
) -> None:
    writer = Writer(flaky, "s", "cpu0")
    flaky.losses = 1_000_000
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(writer.end, Ending(*claimed[0][:3], Move.FAIL))
        writer.stop()
        with pytest.raises(Unavailable):
            waiting.result(timeout=30)


def test_an_ending_that_cannot_be_written_harms_no_other(
    db: Database, claimed: list[Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    for lease in claimed:
        leases.start(db, lease)
    bad = {**IMAGE, "infotext": "a null \0 in a prompt"}
    endings = [
        Ending(*lease[:3], Move.SUCCEED, image=bad if lease.ord == 1 else IMAGE)
        for lease in claimed
    ]
    writer = Writer(db, "s", "cpu0")
    held, end = threading.Event(), leases.end

    def wait_and_end(*all_of_it: Any) -> Any:
        held.wait(timeout=20)
        return end(*all_of_it)

    monkeypatch.setattr(leases, "end", wait_and_end)
    with ThreadPoolExecutor(4) as pool:
        states = [pool.submit(writer.end, ending) for ending in endings]
        held.set()
        assert [state.result(timeout=20) for state in states] == [
            "succeeded",
            "failed",
            "succeeded",
            "succeeded",
        ]
    writer.stop()
    failed = db.one("SELECT error FROM outcomes WHERE state = 'failed'")
    assert failed
    assert failed["error"]["title"] == "The result cannot be recorded"
    assert db.all("SELECT FROM leases") == []


def test_the_writer_outlives_those_who_listen_to_it(db: Database, claimed: list[Lease]) -> None:
    def tell(_: object) -> None:
        raise RuntimeError("nobody listens")

    writer, states = Writer(db, "s", "cpu0", tell=tell), []

    def end() -> None:
        for lease in claimed:
            states.append(writer.end(Ending(*lease[:3], Move.FAIL)))

    threading.Thread(target=end, daemon=True).start()
    eventually(lambda: states == ["failed"] * 4, within=20)
    writer.stop()

"""Who is judged dead, and when; who hears nothing; who listens no more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from farm.broker.progress import client_url
from farm.broker.queue import Publisher, queue_name
from farm.db import batches, leases, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim, Lease
from farm.db.sessions import NewSession
from farm.dispatch.reaper import BLIND, FORGOTTEN, GRACE, PUBLISHES, Reaper
from farm.spec.batch import BatchSpec
from tests.records import TEMPLATE


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reaper(broker_url: str, clock: Clock) -> Iterator[Reaper]:
    publisher = Publisher(broker_url)
    yield Reaper(publisher, clock)
    publisher.close()


@pytest.fixture
def broker(broker_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(client_url(broker_url)) as client:
        client.flushall()
        yield client


def hold(db: Database, name: str, *, jobs: int = 3, started: int = 0) -> str:
    """A live session that holds leases, some of them started."""
    sessions.open(db, NewSession(name, name, "host", 1, {}, "cpu", 8), lease=600)
    spec = BatchSpec(template=TEMPLATE, count=jobs)
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id
    for lease in leases.claim(db, [Claim(batch, name, count=jobs)])[:started]:
        leases.start(db, lease)
    return name


def age(db: Database, *, publishes: int = 1) -> None:
    """Let all messages be from an hour ago, sent so often."""
    with db.connection() as connection:
        connection.execute(
            "UPDATE leases SET published_at = now() - interval '1 hour', publishes = %s",
            (publishes,),
        )


def alive(db: Database) -> set[str]:
    return {session.id for session in sessions.live(db)}


def look(reaper: Reaper, db: Database, clock: Clock, seconds: float) -> None:
    """Look once a second for so long."""
    until = clock.now + seconds
    while clock.now < until:
        clock.now += 1.0
        reaper.look(db)


@pytest.mark.parametrize("gap", ["a new leader", "Postgres was away"])
def test_nobody_is_judged_by_one_who_could_not_see(
    db: Database, reaper: Reaper, clock: Clock, gap: str
) -> None:
    if gap == "Postgres was away":
        look(reaper, db, clock, 60)
    hold(db, "overdue")
    with db.connection() as connection:
        connection.execute("UPDATE sessions SET lease_until = now() - interval '1 minute'")
    if gap == "Postgres was away":
        clock.now += BLIND + 1
    look(reaper, db, clock, GRACE)
    assert alive(db) == {"overdue"}
    look(reaper, db, clock, 2)
    assert alive(db) == set()
    assert len(db.all("SELECT FROM requeue")) == 3


def test_a_successor_needs_no_judgement(db: Database, reaper: Reaper) -> None:
    hold(db, "first", started=1)
    sessions.open(db, NewSession("second", "first", "host", 1, {}, "cpu", 8), lease=600)
    reaper.look(db)
    assert alive(db) == {"second"}
    crashes = db.all("SELECT crashes FROM requeue ORDER BY ord")
    assert [row["crashes"] for row in crashes] == [1, 0, 0]


def test_a_crash_counts_though_its_reaper_died_too(db: Database, reaper: Reaper) -> None:
    """Between the end of the session and that of its leases."""
    hold(db, "dead", started=1)
    sessions.expire(db, ids=["dead"])
    reaper.look(db)
    assert [row["crashes"] for row in db.all("SELECT crashes FROM requeue ORDER BY ord")] == [
        1,
        0,
        0,
    ]


@pytest.mark.usefixtures("broker")
def test_a_session_that_never_hears_is_ended(
    db: Database, reaper: Reaper, broker: redis.Redis
) -> None:
    """Its messages lie in its queue, or are gone once it has fetched them: it begins nothing."""
    hold(db, "deaf", started=1)
    for publishes in range(1, PUBLISHES):
        age(db, publishes=publishes)
        reaper.look(db)
        assert alive(db) == {"deaf"}
    assert broker.llen(queue_name("deaf")) == 1, "what is there is not sent again"
    age(db, publishes=PUBLISHES)
    reaper.look(db)
    assert alive(db) == set()
    rows = db.all("SELECT ord, crashes FROM requeue ORDER BY ord")
    assert [tuple(row.values()) for row in rows] == [(0, 0), (1, 0), (2, 0)], "no job is to blame"
    assert not broker.exists(queue_name("deaf"))


def test_a_broker_out_of_reach_makes_nobody_deaf(db: Database, clock: Clock) -> None:
    publisher = Publisher("redis+socket:///nowhere/at/all.sock")
    hold(db, "patient")
    age(db, publishes=PUBLISHES)
    Reaper(publisher, clock).look(db)
    assert alive(db) == {"patient"}
    assert len(db.all("SELECT FROM leases")) == 3
    publisher.close()


@pytest.mark.usefixtures("broker")
def test_a_draining_session_gives_back_what_it_has_not_begun(db: Database, reaper: Reaper) -> None:
    hold(db, "draining", started=1)
    sessions.drain(db, "draining")
    age(db)
    reaper.look(db)
    assert alive(db) == {"draining"}
    assert [row["ord"] for row in db.all("SELECT ord FROM leases")] == [0]
    assert len(db.all("SELECT FROM requeue WHERE crashes = 0")) == 2


def beat(db: Database, session: str, oldest: float | None) -> None:
    stats = {} if oldest is None else {"oldest_seconds": oldest}
    assert sessions.beat(db, session, lease=600, resident=[], stats=stats)


@pytest.mark.parametrize(
    ("oldest", "kept"),
    [
        (0.0, []),  # it makes nothing
        (100.0, []),  # what it makes is younger
        (3600.0, [0, 1]),  # it has made something for as long
        (3600.0 - FORGOTTEN / 2, [0, 1]),  # clocks are not compared that closely
        (None, [0, 1]),  # it does not say
    ],
)
def test_what_a_live_session_forgot_is_taken_back(
    db: Database, reaper: Reaper, oldest: float | None, kept: list[int]
) -> None:
    """Its ending could not be written, say; the third lease has not begun."""
    hold(db, "forgetful", started=2)
    with db.connection() as connection:
        connection.execute(
            """UPDATE leases SET started_at = now() - interval '1 hour'
               WHERE started_at IS NOT NULL"""
        )
    beat(db, "forgetful", oldest)
    returned = reaper.look(db)
    assert alive(db) == {"forgetful"}
    assert [row["ord"] for row in db.all("SELECT ord FROM leases ORDER BY ord")] == [*kept, 2]
    assert sorted(one.ord for one in returned) == [ord for ord in (0, 1) if ord not in kept]
    rows = db.all("SELECT ord, crashes FROM requeue ORDER BY ord")
    assert [tuple(row.values()) for row in rows] == [(one.ord, 1) for one in sorted(returned)]
    told = db.all("SELECT error ->> 'detail' AS detail FROM attempts WHERE result = 'lost'")
    assert all("did not say how" in row["detail"] for row in told)
    assert len(told) == len(returned)


def test_nobody_waits_for_a_lease_that_is_being_ended(db: Database, reaper: Reaper) -> None:
    """Neither who cancels, nor who reaps, nor who sends again: so none can wait for each other."""
    hold(db, "dead", jobs=4, started=3)
    batch = db.one("SELECT id FROM batches")
    assert batch
    leased = [
        Lease(**row) for row in db.all("SELECT batch_id, ord, attempt, session_id FROM leases")
    ]
    with db.connection() as ending:
        ending.execute("SELECT FROM leases WHERE ord IN (0, 3) FOR UPDATE")
        leases.republished(db, leased)
        batches.cancel(db, batch["id"])
        flagged = "SELECT ord FROM leases WHERE cancel_requested ORDER BY ord"
        assert [row["ord"] for row in db.all(flagged)] == [1, 2]
        sessions.expire(db, ids=["dead"])
        assert sorted(one.ord for one in leases.reap(db, ["dead"], crashed=True)) == [1, 2]
    reaper.look(db)
    assert db.all("SELECT FROM leases") == []


def test_who_is_missed_by_a_cancellation_hears_of_it_a_second_later(
    db: Database, reaper: Reaper
) -> None:
    hold(db, "busy", started=2)
    batch = db.one("SELECT id FROM batches")
    assert batch
    with db.connection() as starting:
        starting.execute("SELECT FROM leases FOR UPDATE")
        batches.cancel(db, batch["id"])
    reaper.look(db)
    answer = sessions.beat(db, "busy", lease=60, resident=[], stats={})
    assert answer
    assert len(answer.unwanted) == 3


def test_what_a_worker_died_of_is_told_and_its_jobs_go_elsewhere(
    db: Database, reaper: Reaper
) -> None:
    name = hold(db, "hung", jobs=3, started=2)
    told = {"class": "hung", "title": "Worker hung", "detail": "denoise has not ended for 9 s"}
    sessions.die(db, name, error=told)
    assert sessions.live(db) == []
    assert len(reaper.look(db)) == 3
    tried = db.all("SELECT result, error FROM attempts ORDER BY ord")
    assert [(each["result"], each["error"] | told) for each in tried] == [
        ("lost", each["error"]) for each in tried
    ]
    assert len(tried) == 2
    assert all(each["error"]["remedy"] for each in tried)
    waiting = db.all("SELECT reason, avoid, crashes FROM requeue ORDER BY ord")
    assert {each["reason"] for each in waiting} == {told["detail"]}
    assert {each["avoid"] for each in waiting} == {"hung"}
    assert [each["crashes"] for each in waiting] == [1, 1, 0]

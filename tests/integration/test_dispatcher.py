"""The dispatcher's cycles against a real Postgres and a real broker, without workers."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis

from farm.broker.progress import client_url
from farm.broker.queue import Publisher, queue_name
from farm.db import assets, backlog, batches, leases, queries, sessions, users
from farm.db.assets import Asset
from farm.db.batches import Batch, NewBatch
from farm.db.database import Database
from farm.db.leases import Claim, Ending, Lease
from farm.db.sessions import NewSession
from farm.dispatch import dispatcher as dispatching
from farm.dispatch import heads, reaper
from farm.dispatch.dispatcher import Dispatcher
from farm.errors import Conflict
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.moves import Move
from tests.conftest import eventually
from tests.records import TEMPLATE


@pytest.fixture
def broker(broker_url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(client_url(broker_url))
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def dispatcher(db: Database, broker: redis.Redis, broker_url: str) -> Iterator[Dispatcher]:
    publisher = Publisher(broker_url)
    yield Dispatcher(db, publisher)
    publisher.close()


def submit(db: Database, total: int, **fields: Any) -> int:
    spec = BatchSpec(template=TEMPLATE, count=total)
    return batches.accept(db, NewBatch(users.local(db).id, **{"spec": spec, **fields})).id


def worker(db: Database, name: str = "gpu0", *, capacity: int = 4, lease: float = 60) -> str:
    session = NewSession(f"s-{name}-{capacity}-{lease}", name, "host", 1, {}, "cpu", capacity)
    sessions.open(db, session, lease=lease)
    return session.id


def queued(broker: redis.Redis, session: str) -> int:
    """Attempts in the messages that wait for a session."""
    messages = [json.loads(raw) for raw in broker.lrange(queue_name(session), 0, -1)]
    bodies = [json.loads(base64.b64decode(message["body"])) for message in messages]
    return sum(len(attempts) for (attempts,), *_ in bodies)


def fetched(db: Database, batch: int) -> Batch:
    found = batches.fetch(db, batch)
    assert found
    return found


def test_a_session_gets_no_more_than_it_can_hold(
    db: Database, broker: redis.Redis, dispatcher: Dispatcher
) -> None:
    batch, session = submit(db, 10), worker(db, capacity=4)
    assert dispatcher.cycle() == 4
    assert dispatcher.cycle() == 0
    assert queued(broker, session) == 4
    assert fetched(db, batch).counts["pending"] == 10

    lease = Lease(batch, 0, 1, session)
    assert leases.start(db, lease)
    leases.end(db, session, "gpu0", [Ending(batch, 0, 1, Move.FAIL)])
    assert dispatcher.cycle() == 1


def test_nothing_is_sent_before_others_can_see_its_lease(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a worker could hear of an attempt that there is not, and drop its message."""
    submit(db, 3)
    worker(db)
    seen: list[int] = []

    def publish(messages: Sequence[object]) -> bool:
        with Database(db.url) as other:
            seen.append(len(other.all("SELECT FROM leases")))
        return len(messages) == 3

    monkeypatch.setattr(dispatcher._publisher, "publish", publish)
    assert dispatcher.cycle() == 3
    assert seen == [3]


def test_a_batch_is_closed_when_an_attempt_of_it_has_ended_and_at_times_all_are_looked_at(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    one, other = submit(db, 1), submit(db, 1)
    session = worker(db)
    assert dispatcher.cycle() == 2
    for batch in (one, other):
        assert leases.start(db, Lease(batch, 0, 1, session))
        leases.end(db, session, "gpu0", [Ending(batch, 0, 1, Move.FAIL)])
    db.all("DELETE FROM attempts WHERE batch_id = %(other)s RETURNING ord", {"other": other})
    dispatcher.cycle()
    assert fetched(db, one).ended_at
    assert not fetched(db, other).ended_at, "nothing is known to have happened to it"
    monkeypatch.setattr(dispatching, "_ALL", 0.0)
    dispatcher.cycle()
    assert fetched(db, other).ended_at


def test_lost_messages_are_sent_again_and_only_those(
    db: Database,
    broker: redis.Redis,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reaper, "REPUBLISH", 0.0)
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    submit(db, 3)
    session = worker(db)
    dispatcher.cycle()
    dispatcher.cycle()
    assert queued(broker, session) == 3, "what waits in the queue is not sent twice"
    broker.flushall()
    dispatcher.cycle()
    assert queued(broker, session) == 3


def test_a_batch_that_cannot_be_read_stops_no_other(db: Database, dispatcher: Dispatcher) -> None:
    broken, sound = submit(db, 2), submit(db, 2)
    with db.connection() as connection:
        connection.execute(
            """UPDATE batches SET spec = '{"of": "another version"}' WHERE id = %s""", (broken,)
        )
    worker(db)
    assert dispatcher.cycle() == 2
    assert {row["batch_id"] for row in db.all("SELECT batch_id FROM leases")} == {sound}
    assert dispatcher.cycle() == 0


def test_a_dead_sessions_jobs_go_to_another(
    db: Database,
    broker: redis.Redis,
    dispatcher: Dispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    batch = submit(db, 2)
    dead = worker(db, "gpu0")
    dispatcher.cycle()
    assert leases.start(db, Lease(batch, 0, 1, dead))
    db.one("UPDATE sessions SET lease_until = 'epoch' RETURNING id")
    other = worker(db, "gpu1")
    assert dispatcher.cycle() == 2
    rows = db.all("SELECT ord, attempt, session_id, crashes FROM leases ORDER BY ord")
    assert [tuple(row.values()) for row in rows] == [(0, 2, other, 1), (1, 2, other, 0)]
    assert queued(broker, dead) == 0
    history = db.all("SELECT ord, attempt, result FROM attempts")
    assert [tuple(row.values()) for row in history] == [(0, 1, "lost")]


def test_a_worker_that_comes_back_succeeds_its_dead_session_at_once(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    submit(db, 1)
    worker(db, "gpu0", lease=3600)
    dispatcher.cycle()
    again = worker(db, "gpu0", lease=60)
    dispatcher.cycle()
    dispatcher.cycle()
    assert [row["session_id"] for row in db.all("SELECT session_id FROM leases")] == [again]


def test_a_cancelled_batch_ends_and_gets_no_more_places(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    batch, session = submit(db, 10), worker(db, capacity=2)
    dispatcher.cycle()
    started = Lease(batch, 0, 1, session)
    leases.start(db, started)
    cancelled = batches.cancel(db, batch)
    assert cancelled
    assert cancelled.counts == {
        "pending": 1,
        "running": 1,
        "succeeded": 0,
        "failed": 0,
        "cancelled": 8,
    }
    answer = sessions.beat(db, session, lease=60, resident=[], stats={})
    assert answer
    assert (answer.state, sorted(answer.unwanted)) == ("live", [(batch, 0, 1), (batch, 1, 1)])
    for ord in (0, 1):
        leases.end(db, session, "gpu0", [Ending(batch, ord, 1, Move.STOP)])
    dispatcher.cycle()
    assert fetched(db, batch).ended_at
    assert fetched(db, batch).counts["cancelled"] == 10
    assert batches.cancel(db, batch) == fetched(db, batch), "twice is as good as once"


def test_higher_priority_goes_first_then_the_older(db: Database, dispatcher: Dispatcher) -> None:
    first, second, urgent = submit(db, 2), submit(db, 2), submit(db, 1, priority=90)
    worker(db, capacity=3)
    dispatcher.cycle()
    rows = db.all("SELECT batch_id FROM leases ORDER BY batch_id")
    assert [row["batch_id"] for row in rows] == [first, first, urgent]
    assert second not in [row["batch_id"] for row in rows]


def test_listed_jobs_run_grouped_by_checkpoint_in_order(
    db: Database, dispatcher: Dispatcher
) -> None:
    jobs = [JobSpec(**{**TEMPLATE, "checkpoint": name}) for name in "aab"]
    batch = submit(db, 3, spec=None, jobs=jobs)
    worker(db, capacity=8)
    while dispatcher.cycle():
        pass
    assert [row["ord"] for row in db.all("SELECT ord FROM leases ORDER BY ord")] == [0, 1, 2]
    assert fetched(db, batch).explicit


def test_the_same_request_twice_is_one_batch(db: Database) -> None:
    user = users.local(db).id
    spec = BatchSpec(template=TEMPLATE, count=2)
    new = NewBatch(user, spec=spec, idempotency_key="k", request_hash=b"1")
    first, again = batches.accept(db, new), batches.accept(db, new)
    assert (first.id, first.created, again.created) == (again.id, True, False)
    other = NewBatch(user, spec=spec, idempotency_key="k", request_hash=b"2")
    with pytest.raises(Conflict) as raised:
        batches.accept(db, other)
    assert raised.value.field == "Idempotency-Key"
    assert len(batches.page(db, limit=10)) == 1


def test_a_standby_leads_when_the_leader_goes(database_url: str, broker_url: str) -> None:
    stops = [threading.Event(), threading.Event()]
    databases = [Database(database_url), Database(database_url)]
    cycles: list[int] = []

    class Counting(Dispatcher):
        def __init__(self, number: int) -> None:
            super().__init__(databases[number], Publisher(broker_url))
            self.number = number

        def cycle(self, *, changed: bool = True) -> int:
            cycles.append(self.number)
            return super().cycle(changed=changed)

    threads = [
        threading.Thread(target=Counting(number).run, args=(stops[number],)) for number in (0, 1)
    ]
    threads[0].start()
    eventually(lambda: 0 in cycles)
    threads[1].start()
    eventually(lambda: cycles.count(0) > 2)
    assert 1 not in cycles
    stops[0].set()
    threads[0].join()
    eventually(lambda: 1 in cycles)
    stops[1].set()
    threads[1].join()
    for database in databases:
        database.close()


def test_a_leader_that_loses_postgres_leads_again(database_url: str, broker_url: str) -> None:
    stop = threading.Event()
    with Database(database_url) as database:
        running = Dispatcher(database, Publisher(broker_url))
        thread = threading.Thread(target=running.run, args=(stop,))
        thread.start()
        holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        eventually(lambda: database.one(holder))
        first = database.one(holder)
        database.all(f"SELECT pg_terminate_backend(pid) FROM ({holder}) AS h")
        eventually(lambda: (now := database.one(holder)) and now != first)
        stop.set()
        thread.join()


def test_a_place_that_becomes_free_wakes_the_dispatcher(
    db: Database, database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "IDLE", 3600.0)
    batch, session = submit(db, 2), worker(db, capacity=1)
    stop = threading.Event()
    with Database(database_url) as own:
        thread = threading.Thread(
            target=Dispatcher(own, Publisher(broker_url)).run, args=(stop,), daemon=True
        )
        thread.start()
        leased = "SELECT ord FROM leases"
        eventually(lambda: db.one(leased) == {"ord": 0})
        leases.start(db, Lease(batch, 0, 1, session))
        leases.end(db, session, "gpu0", [Ending(batch, 0, 1, Move.FAIL)])
        eventually(lambda: db.one(leased) == {"ord": 1}, within=20)
        stop.set()
        submit(db, 1)  # wakes it, so that it sees the stop
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_jobs_that_alternate_between_checkpoints_fill_all_places_at_once(
    db: Database, database_url: str, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a batch the leader sees the jobs up to the next checkpoint: it goes on until all places
    are taken, and does not wait to be woken."""
    monkeypatch.setattr(dispatching, "IDLE", 3600.0)
    jobs = [JobSpec(**{**TEMPLATE, "checkpoint": name}) for name in "abcabc"]
    worker(db, capacity=8)
    submit(db, 6, spec=None, jobs=jobs)
    stop = threading.Event()
    with Database(database_url) as own:
        thread = threading.Thread(
            target=Dispatcher(own, Publisher(broker_url)).run, args=(stop,), daemon=True
        )
        thread.start()
        eventually(lambda: len(db.all("SELECT FROM leases")) == 6, within=20)
        stop.set()
        submit(db, 1)  # wakes it, so that it sees the stop
        thread.join(timeout=20)
        assert not thread.is_alive()


def submit_as(db: Database, name: str, total: int, **fields: Any) -> int:
    users.create_key(db, name)
    row = db.one("SELECT id FROM users WHERE name = %(name)s", {"name": name})
    assert row
    spec = BatchSpec(template=TEMPLATE, count=total)
    return batches.accept(db, NewBatch(row["id"], **{"spec": spec, **fields})).id


def in_flight(db: Database) -> dict[int, int]:
    rows = db.all("SELECT batch_id, count(*) AS held FROM leases GROUP BY batch_id")
    return {row["batch_id"]: row["held"] for row in rows}


def finish(db: Database, batch: int, gpu_seconds: float) -> None:
    """Everything of a batch that is in flight is done."""
    held = db.all(
        "SELECT ord, attempt, session_id FROM leases WHERE batch_id = %(id)s", {"id": batch}
    )
    for row in held:
        leases.start(db, Lease(batch, row["ord"], row["attempt"], row["session_id"]))
        ending = Ending(batch, row["ord"], row["attempt"], Move.FAIL)
        leases.end(
            db, row["session_id"], "gpu0", [replace(ending, stats={"gpu_seconds": gpu_seconds})]
        )


def test_a_user_with_few_jobs_does_not_wait_for_one_with_many(
    db: Database, dispatcher: Dispatcher
) -> None:
    many, few = submit_as(db, "ann", 5000), submit_as(db, "bob", 4)
    worker(db, capacity=8)
    dispatcher.cycle()
    assert in_flight(db) == {many: 4, few: 4}


def test_many_batches_hide_nobody_elses(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MANY", 10)
    for _ in range(12):
        submit_as(db, "ann", 3)
    last = submit_as(db, "bob", 3)
    worker(db, capacity=4)
    dispatcher.cycle()
    assert in_flight(db)[last] == 2


def test_batches_that_nobody_can_take_hide_none_behind_them(
    db: Database, dispatcher: Dispatcher
) -> None:
    tagged = [submit(db, 1, tags=["nowhere"]) for _ in range(3 * heads.EACH)]
    possible = submit(db, 2)
    worker(db)
    assert dispatcher.cycle() == 2
    assert in_flight(db) == {possible: 2}

    with db.connection() as connection:
        connection.execute("UPDATE sessions SET tags = ARRAY['nowhere'], capacity = 5")
    assert dispatcher.cycle() == 3
    assert in_flight(db) == {possible: 2, **dict.fromkeys(tagged[:3], 1)}


def test_batches_for_busy_sessions_hide_none_that_a_free_one_could_make(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a user the first few batches are looked at: however many wait for one host, another goes
    on with what is behind them, and the first one too when it has a place again."""
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    sessions_of = {}
    for host, name in (("one", "a"), ("other", "b")):
        assets.register(db, host, [Asset(name, "sd15", 1, f"/{name}", {}, None)])
        sessions_of[name] = f"s-{host}"
        sessions.open(db, NewSession(f"s-{host}", "gpu0", host, 1, {}, "cpu", 1), lease=60)
    specs = {name: BatchSpec(template={**TEMPLATE, "checkpoint": name}) for name in "ab"}
    first = [submit(db, 1, spec=specs["a"]) for _ in range(2 * heads.EACH)]
    second = [submit(db, 1, spec=specs["b"]) for _ in range(2)]

    for number in range(2):
        while dispatcher.cycle():
            pass
        assert in_flight(db) == {first[number]: 1, second[number]: 1}
        finish(db, first[number], 0.1)
        finish(db, second[number], 0.1)


def test_what_jobs_truly_took_decides_who_is_next(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    heavy, light = submit_as(db, "ann", 100), submit_as(db, "bob", 100)
    worker(db, capacity=4)
    dispatcher.cycle()
    assert in_flight(db) == {heavy: 2, light: 2}
    finish(db, heavy, gpu_seconds=500.0)
    finish(db, light, gpu_seconds=0.1)
    dispatcher.cycle()
    assert in_flight(db) == {light: 4}


def test_weights_and_caps_are_heeded_at_once(db: Database, dispatcher: Dispatcher) -> None:
    one, other = submit_as(db, "ann", 100), submit_as(db, "bob", 100)
    users.set_share(db, "ann", weight=3.0, cap=None)
    session = worker(db, capacity=8)
    dispatcher.cycle()
    assert in_flight(db) == {one: 6, other: 2}
    users.set_share(db, "ann", weight=None, cap=6)
    db.one("UPDATE sessions SET capacity = 16 WHERE id = %(id)s RETURNING id", {"id": session})
    dispatcher.cycle()
    assert in_flight(db) == {one: 6, other: 10}


def test_a_paused_batch_gets_no_more_places_until_it_is_resumed(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    batch, session = submit(db, 10), worker(db, capacity=2)
    dispatcher.cycle()
    paused = batches.pause(db, batch)
    assert paused
    assert paused.state == "paused"
    finish(db, batch, gpu_seconds=1.0)
    assert dispatcher.cycle() == 0
    assert batches.pause(db, batch) == fetched(db, batch)
    resumed = batches.resume(db, batch)
    assert resumed
    assert resumed.state == "running"
    assert dispatcher.cycle() == 2
    batches.pause(db, batch)
    cancelled = batches.cancel(db, batch)
    assert cancelled
    assert cancelled.state == "cancelled"
    assert leases.start(db, Lease(batch, 2, 1, session))


def test_a_batch_can_become_more_important(db: Database, dispatcher: Dispatcher) -> None:
    first, second = submit(db, 10), submit(db, 10)
    batches.set_priority(db, second, 60)
    worker(db, capacity=4)
    dispatcher.cycle()
    assert in_flight(db) == {second: 4}
    assert first not in in_flight(db)


def test_a_job_goes_only_to_hosts_that_have_its_checkpoint(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    name = str(TEMPLATE["checkpoint"])

    def file(host: str, error: str | None) -> None:
        asset = Asset(name, "sdxl", 1, f"/models/{name}", {}, error)
        assets.register(db, host, [asset], folders=["/models"])

    file("host", "It is cut short.")
    batch = submit(db, 2)
    worker(db)
    assert dispatcher.cycle() == 0
    file("host", None)
    assert dispatcher.cycle() == 2
    assert in_flight(db) == {batch: 2}


FORECAST = "INSERT INTO forecasts (batch_id, moment, model, p50, p90) VALUES (%s, 'half', 1, 1, 1)"


@pytest.mark.parametrize(
    ("statement", "placed"),
    [("UPDATE batches SET priority = 60 WHERE id = %s", 2), (FORECAST, 4)],
    ids=["its owner changes it", "a forecast of it is made"],
)
def test_a_statement_that_has_a_batch_holds_nobody_up(
    db: Database, dispatcher: Dispatcher, statement: str, placed: int
) -> None:
    held, other = submit(db, 2), submit(db, 2)
    worker(db)
    with db.connection() as somebody:
        somebody.execute(statement, (held,))
        assert dispatcher.cycle() == placed
    dispatcher.cycle()
    assert in_flight(db) == {held: 2, other: 2}


def test_a_cancel_that_met_a_claim_stops_what_was_claimed(db: Database) -> None:
    batch, session = submit(db, 1), worker(db)
    [lease] = leases.claim(db, [Claim(batch, session, count=1)])
    db.all(
        "UPDATE batches SET state = 'cancelled' WHERE id = %(id)s RETURNING id", {"id": batch}
    )  # without the flag on a lease that it did not see yet
    started = leases.start(db, lease)
    assert started
    assert started.cancel_requested


def test_a_cancel_that_waits_for_the_claim_of_the_last_jobs_is_not_lost(db: Database) -> None:
    """What the claim leaves is decided by rows that a statement begun before cannot see."""
    batch, session = submit(db, 2), worker(db)
    values = {"batch_ids": [batch], "session_ids": [session], "firsts": [0], "counts": [2]}
    waits = "SELECT pid FROM pg_locks WHERE NOT granted"
    cancelling = threading.Thread(target=batches.cancel, args=(db, batch))
    with db.connection() as claiming:
        claiming.execute(queries.CLAIM, values)
        cancelling.start()
        eventually(lambda: db.one(waits))
    cancelling.join()
    assert fetched(db, batch).state == "cancelled"
    flags = db.all("SELECT cancel_requested FROM leases")
    assert flags == [{"cancel_requested": True}] * 2


def wait(db: Database, batch: int, count: int) -> None:
    """So many jobs of a batch wait to be retried, and are due."""
    with db.connection() as connection:
        connection.execute(
            """INSERT INTO requeue (batch_id, ord, attempt, failures, crashes, not_before, reason)
               SELECT %s, n, 1, 0, 0, now(), '' FROM generate_series(1, %s) n""",
            (batch, count),
        )


def test_many_that_wait_are_stopped_a_few_at_a_time(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "STOPPED", 2)
    batch = submit(db, 6)
    wait(db, batch, 5)
    batches.cancel(db, batch)
    assert [backlog.finish(db) for _ in range(4)] == [[], [], [batch], []]
    assert db.one("SELECT count(*) AS n FROM outcomes WHERE state = 'cancelled'") == {"n": 5}
    assert fetched(db, batch).counts["cancelled"] == 6


def test_many_retries_hide_nobody_elses(db: Database) -> None:
    for _ in range(3):
        wait(db, submit_as(db, "ann", 9), 8)
    last = submit_as(db, "bob", 9)
    wait(db, last, 1)
    found = backlog.Retries(batches=4, jobs=25).look(db, least=0)
    assert [retry.batch_id for retry in found].count(last) == 1
    assert len(found) == 3 * 6 + 1


def test_a_charge_for_what_never_began_is_given_back(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once with its worker dead, once with it draining; what it had begun stays charged."""
    monkeypatch.setattr(dispatching, "_TIDY", 0.0)
    batch = submit(db, 3)
    session = worker(db, "gpu0")
    assert dispatcher.cycle() == 3
    assert leases.start(db, Lease(batch, 0, 1, session))
    accounts = dispatcher._accounts
    each = accounts.ahead(session) / 3
    time = accounts._shares._times[users.local(db).id]
    db.all("UPDATE sessions SET lease_until = 'epoch' RETURNING id")
    dispatcher.cycle()
    assert accounts.ahead(session) == pytest.approx(0, abs=1e-6)
    assert accounts._shares._times[users.local(db).id] == pytest.approx(time - 2 * each)


def test_of_many_batches_with_retries_a_few_have_their_turn_at_a_time(db: Database) -> None:
    """Also those of a lower class, and behind those that nobody may begin now."""
    numbers = [submit_as(db, f"user {n}", 9) for n in range(8)]
    for number in numbers:
        wait(db, number, 6)
    batches.pause(db, numbers[0])
    retries = backlog.Retries(batches=3, jobs=6)
    seen: list[set[int]] = []
    for _ in range(6):
        found = retries.look(db, least=0)
        assert len(found) <= 6
        seen.append({retry.batch_id for retry in found})
    turns = [set(numbers[1:3]), set(numbers[3:6]), set(numbers[6:])]
    assert seen == turns * 2


def test_what_waits_is_read_again_when_something_has_changed(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two readings the leader knows what it has claimed, to the last job."""
    monkeypatch.setattr(dispatching, "_TIDY", 3600.0)
    first, second = submit(db, 7), submit(db, 2)
    worker(db, capacity=4)
    readings: list[int] = []
    read = backlog.open_batches

    def counted(*args: Any, **options: Any) -> Any:
        readings.append(1)
        return read(*args, **options)

    monkeypatch.setattr(backlog, "open_batches", counted)
    placed = []
    for _ in range(3):
        dispatcher.cycle(changed=False)
        placed.append((in_flight(db), len(readings)))
        finish(db, first, 0.1)
        finish(db, second, 0.1)
    # The first of them ran dry in the second round, so that the third one looked again.
    assert placed == [({first: 4}, 1), ({first: 3, second: 1}, 1), ({second: 1}, 2)]

    third = submit(db, 4)
    assert dispatcher.cycle(changed=False) == 4, "the second one has ended, so it looks"
    finish(db, third, 0.1)
    fourth = submit(db, 3)
    dispatcher.cycle(changed=False)
    assert in_flight(db) == {fourth: 3}


def test_a_batch_that_gave_less_than_was_asked_of_it_is_read_again(
    db: Database, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "_TIDY", 3600.0)
    first, second = submit(db, 100), submit(db, 100)
    worker(db, capacity=4)
    dispatcher.cycle()
    finish(db, first, 0.1)
    db.all("UPDATE batches SET state = 'paused' WHERE id = %(id)s RETURNING 1", {"id": first})
    assert dispatcher.cycle(changed=False) == 0, "nobody told of the pause, but it is heeded"
    dispatcher.cycle(changed=False)
    assert in_flight(db) == {second: 4}


def test_one_statement_serves_all_claims(db: Database) -> None:
    """Two sessions of one batch, more than is left of another, jobs that have ended ahead, and some
    that others are left behind for."""
    big, small = submit(db, 20), submit(db, 3)
    one, other = worker(db, "gpu0"), worker(db, "gpu1")
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO outcomes (batch_id, ord, attempt, state) VALUES (%s, 1, 0, 'cancelled')",
            (big,),
        )
    wanted = [
        Claim(big, other, count=3),
        Claim(small, one, count=2),
        Claim(big, one, count=2, first=3),
        Claim(small, other, count=9, first=2),
        Claim(big, other, count=2, first=8),
        Claim(big, one, count=9, first=17),
    ]
    assert leases.claim(db, wanted) == [
        Lease(big, 0, 1, other),
        Lease(big, 2, 1, other),
        Lease(small, 0, 1, one),
        Lease(small, 1, 1, one),
        Lease(big, 3, 1, one),
        Lease(big, 4, 1, one),
        Lease(small, 2, 1, other),
        *(Lease(big, ord, 1, other) for ord in (8, 9)),
        *(Lease(big, ord, 1, one) for ord in (17, 18, 19)),
    ]
    rows = db.all("SELECT id, cursor, ahead::text FROM batches ORDER BY id")
    ahead = "{[8,10),[17,20)}"
    assert [tuple(row.values()) for row in rows] == [(big, 5, ahead), (small, 3, "{}")]

    again = leases.claim(db, [Claim(big, one, count=20)])
    assert [lease.ord for lease in again] == [5, 6, 7, *range(10, 17)]
    [row] = db.all("SELECT cursor, ahead::text FROM batches WHERE id = %(id)s", {"id": big})
    assert tuple(row.values()) == (20, "{}")

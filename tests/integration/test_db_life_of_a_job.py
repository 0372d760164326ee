"""Random moves on the real database and on the table in farm.spec.moves must agree."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from farm.db import backlog, batches, failures, forecasts, jobs, leases, migrate, sessions, users
from farm.db.batches import NewBatch
from farm.db.database import Database
from farm.db.leases import Claim, Ending, Lease
from farm.db.sessions import NewSession
from farm.spec.batch import BatchSpec
from farm.spec.moves import ENDED, FATAL_CRASHES, IN_FLIGHT, TABLE, Move, State, after
from tests.records import IMAGE, TEMPLATE


def accept(db: Database, total: int) -> int:
    spec = BatchSpec(template=TEMPLATE, count=total)
    return batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id


def open_session(db: Database, id: str, *, lease: float = 60, worker: str | None = None) -> str:
    sessions.open(db, NewSession(id, worker or id, "host", 1, {}, "cpu", 8), lease=lease)
    return id


class LifeOfAJob(RuleBasedStateMachine):
    """Two sessions and one batch; every statement against what the table of moves says."""

    db: Database
    total = 6

    def __init__(self) -> None:
        super().__init__()
        self.serial = 0
        self.batch = accept(self.db, self.total)
        self.state = dict.fromkeys(range(self.total), State.PENDING)
        self.lease: dict[int, Lease] = {}
        self.crashes = dict.fromkeys(range(self.total), 0)
        self.cancelled = False
        self.stale: list[Lease] = []
        self.repeated: set[int] = set()
        self.live = [self._session(), self._session()]

    def _session(self) -> str:
        self.serial += 1
        return open_session(self.db, f"b{self.batch}s{self.serial}")

    def move(self, ord: int, move: Move) -> None:
        reached = after(self.state[ord], move)
        assert reached, f"{move} does not apply to {self.state[ord]}"
        # Whatever would go back to the queue of a cancelled batch is cancelled instead.
        if self.cancelled and reached is State.WAITING:
            reached = State.CANCELLED
        self.state[ord] = reached

    @rule(first=st.integers(0, 5), count=st.integers(1, 4), which=st.integers(0, 1))
    def claim_what_nobody_has(self, first: int, count: int, which: int) -> None:
        asked = range(first, first + count)
        wanted = [] if self.cancelled else [ord for ord in self._pending() if ord in asked]
        claim = Claim(self.batch, self.live[which], count=count, first=first)
        held = leases.claim(self.db, [claim])
        assert [lease.ord for lease in held] == wanted
        for lease in held:
            self._leased(lease)

    @rule(halves=st.tuples(st.integers(1, 3), st.integers(1, 3)))
    def claim_from_both_ends(self, halves: tuple[int, int]) -> None:
        low, high = halves
        asked = [*range(low), *range(self.total - high, self.total)]
        wanted = [] if self.cancelled else [ord for ord in self._pending() if ord in asked]
        claims = [
            Claim(self.batch, self.live[0], count=high, first=self.total - high),
            Claim(self.batch, self.live[1], count=low),
        ]
        held = leases.claim(self.db, claims)
        assert sorted(lease.ord for lease in held) == wanted
        for lease in held:
            assert lease.session_id == self.live[lease.ord < low]
            self._leased(lease)

    def _pending(self) -> list[int]:
        return [ord for ord, state in self.state.items() if state is State.PENDING]

    @rule(which=st.integers(0, 1), ords=st.sets(st.integers(0, 5), min_size=1))
    def claim_from_the_requeue(self, which: int, ords: set[int]) -> None:
        claim = Claim(self.batch, self.live[which], ords=sorted(ords))
        for lease in leases.claim(self.db, [claim]):
            self._leased(lease)

    def _leased(self, lease: Lease) -> None:
        assert not self.cancelled
        self.move(lease.ord, Move.CLAIM)
        if lease.ord in self.lease:
            assert lease.attempt > self.lease[lease.ord].attempt
            self.stale.append(self.lease[lease.ord])
        self.lease[lease.ord] = lease

    @rule(ord=st.integers(0, 5))
    def start(self, ord: int) -> None:
        if ord not in self.lease:
            return
        started = leases.start(self.db, self.lease[ord])
        assert (started is not None) == (self.state[ord] is State.ASSIGNED)
        if started:
            assert started.cancel_requested == self.cancelled
            self.move(ord, Move.START)

    @rule(
        ord=st.integers(0, 5),
        move=st.sampled_from([Move.SUCCEED, Move.FAIL, Move.RETRY, Move.RELEASE, Move.STOP]),
    )
    def end(self, ord: int, move: Move) -> None:
        if ord not in self.lease or self.state[ord] not in TABLE[move]:
            return
        lease = self.lease[ord]
        image = IMAGE if move is Move.SUCCEED else None
        ending = Ending(self.batch, ord, lease.attempt, move, image=image)
        accepted = leases.end(self.db, lease.session_id, "w", [ending])
        self.move(ord, move)
        reached = self.state[ord]
        assert accepted == {(self.batch, ord, lease.attempt): reached}

    @rule()
    def late_results_are_fenced(self) -> None:
        gone = [lease for ord, lease in self.lease.items() if self.state[ord] not in IN_FLIGHT]
        for lease in self.stale + gone:
            ending = Ending(self.batch, lease.ord, lease.attempt, Move.SUCCEED, image=IMAGE)
            answer = leases.end(self.db, lease.session_id, "w", [ending]).get(tuple(lease[:3]))
            before = {"failed"} if lease.ord in self.repeated else set()
            assert answer in {None, "waiting", self.state[lease.ord], *before}
            assert leases.start(self.db, lease) is None

    @rule(which=st.integers(0, 1), crashed=st.booleans())
    def a_session_ends(self, which: int, crashed: bool) -> None:
        gone = self.live[which]
        if crashed:
            self.db.all(
                "UPDATE sessions SET lease_until = 'epoch' WHERE id = %(id)s RETURNING id",
                {"id": gone},
            )
            assert gone in sessions.expire(self.db)
        else:
            sessions.close(self.db, gone)
        leases.reap(self.db, [gone], crashed=crashed)
        for ord, lease in self.lease.items():
            if lease.session_id == gone and self.state[ord] in IN_FLIGHT:
                self.crashes[ord] += crashed and self.state[ord] is State.RUNNING
                fatal = self.crashes[ord] >= FATAL_CRASHES and not self.cancelled
                self.move(ord, Move.BURY if fatal else Move.REAP)
        self.live[which] = self._session()

    @rule(ord=st.none() | st.integers(0, 5))
    def failed_jobs_are_repeated(self, ord: int | None) -> None:
        wanted = [
            number
            for number, state in self.state.items()
            if state is State.FAILED and ord in (None, number) and not self.cancelled
        ]
        assert failures.repeat(self.db, self.batch, ord) == len(wanted)
        assert failures.repeat(self.db, self.batch, ord) == 0, "twice is as good as once"
        for number in wanted:
            self.move(number, Move.REPEAT)
            self.repeated.add(number)
            self.crashes[number] = 0

    @rule()
    def cancel(self) -> None:
        batches.cancel(self.db, self.batch)
        if not all(state in ENDED for state in self.state.values()):
            self.cancelled = True
            for ord, state in self.state.items():
                if state in TABLE[Move.CANCEL]:
                    self.move(ord, Move.CANCEL)

    @rule()
    def the_dispatcher_tidies(self) -> None:
        finished = backlog.finish(self.db)
        if self.batch in finished:
            assert all(state in ENDED for state in self.state.values())

    @invariant()
    def every_job_is_where_the_table_says(self) -> None:
        rows = self.db.all(
            "SELECT ord, state FROM jobs WHERE batch_id = %(id)s ORDER BY ord", {"id": self.batch}
        )
        assert {row["ord"]: row["state"] for row in rows} == self.state

    @invariant()
    def what_nobody_has_claimed_is_in_its_spans(self) -> None:
        pending = self._pending()
        listed = jobs.page(self.db, self.batch, limit=99, state="pending")
        assert [job.ord for job in listed] == pending
        beyond = jobs.page(self.db, self.batch, limit=2, after=2, state="pending")
        assert [job.ord for job in beyond] == [ord for ord in pending if ord > 2][:2]
        found = {one.id: one for one in backlog.open_batches(self.db, least=0, each=99, limit=999)}
        spans = found[self.batch].spans if self.batch in found else ()
        assert [ord for span in spans for ord in range(*span)] == pending
        left = {one.id: one.spans for one in forecasts.left(self.db, limit=999)}
        assert left.get(self.batch, ()) == spans

    @invariant()
    def the_counts_add_up(self) -> None:
        found = batches.fetch(self.db, self.batch)
        assert found is not None
        states = list(self.state.values())
        assert sum(found.counts.values()) == self.total
        assert found.counts["succeeded"] == states.count(State.SUCCEEDED)
        assert found.counts["failed"] == states.count(State.FAILED)
        assert found.counts["running"] == states.count(State.RUNNING)
        images = self.db.all("SELECT ord FROM images WHERE batch_id = %(id)s", {"id": self.batch})
        assert len(images) == states.count(State.SUCCEEDED)


def live_through(db: Database, lives: int) -> None:
    run_state_machine_as_test(
        type("Bound", (LifeOfAJob,), {"db": db}),
        settings=settings(
            max_examples=lives,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_every_job_is_in_exactly_one_state_whatever_happens(db: Database) -> None:
    live_through(db, 25)


def test_the_same_on_an_older_server(older_postgres_url: str) -> None:
    migrate.upgrade(older_postgres_url)
    with Database(older_postgres_url) as db:
        live_through(db, 10)


@pytest.mark.parametrize("state", list(State))
def test_ended_jobs_move_only_when_their_owner_repeats_a_failed_one(state: State) -> None:
    moves = [move for move in Move if after(state, move)]
    if state in ENDED:
        assert moves == ([Move.REPEAT] if state is State.FAILED else [])
    else:
        assert moves


@pytest.mark.parametrize("same_session", [True, False])
def test_an_earlier_attempt_can_end_nothing(db: Database, same_session: bool) -> None:
    batch = accept(db, 1)
    first = open_session(db, "first")
    second = first if same_session else open_session(db, "second")
    [old] = leases.claim(db, [Claim(batch, first, count=1)])
    assert leases.start(db, old)
    leases.end(db, first, "w", [Ending(batch, 0, 1, Move.RELEASE)])
    [new] = leases.claim(db, [Claim(batch, second, ords=[0])])
    assert new.attempt == 2

    late = Ending(batch, 0, old.attempt, Move.SUCCEED, image=IMAGE)
    assert leases.end(db, first, "w", [late]) == {(batch, 0, 1): "waiting"}, "as it ended before"
    stolen = Ending(batch, 0, new.attempt, Move.SUCCEED, image=IMAGE)
    assert leases.end(db, "somebody else", "w", [stolen]) == {}
    assert leases.start(db, old) is None
    assert db.one("SELECT state FROM jobs") == {"state": "assigned"}

    assert leases.start(db, new._replace(session_id="somebody else")) is None
    assert leases.start(db, new)
    assert leases.start(db, new) is None, "a message that came twice"
    good = Ending(batch, 0, new.attempt, Move.SUCCEED, image=IMAGE)
    assert leases.end(db, second, "w", [good]) == {(batch, 0, 2): "succeeded"}
    assert db.one("SELECT attempt FROM images") == {"attempt": 2}

"""The simulator: it runs what a trace says, and our rules keep their promises in it."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from typer.testing import CliRunner

from farm.cli.main import app
from farm.dispatch.placement import PATIENCE
from farm.dispatch.simulator import bounds
from farm.dispatch.simulator.cards import Turn
from farm.dispatch.simulator.fluid import fair_loads
from farm.dispatch.simulator.generator import mixed
from farm.dispatch.simulator.policies import fifo, ours, policies
from farm.dispatch.simulator.results import Record, jain, result
from farm.dispatch.simulator.trace import Batch, Card, Checkpoint, Part, Trace, User, lines, read
from farm.dispatch.simulator.world import SPREAD, World
from farm.errors import InvalidInput

SMALL = mixed(cards=8, jobs=1200, users=12, checkpoints=10, seed=3)


def trace(batches: list[Batch], *, cards: int = 1, room: int = 1, load: float = 5.0) -> Trace:
    """Cards of speed 1 that hold ``room`` checkpoints of size 1."""
    names = {part.checkpoint for batch in batches for part in batch.parts}
    return Trace(
        cards=tuple(Card(f"c{number}", "card", 1.0, room, 4) for number in range(cards)),
        checkpoints={name: Checkpoint(name, 1, load) for name in sorted(names)},
        users={batch.user: User(batch.user) for batch in batches},
        batches=tuple(batches),
    )


def batch(user: int, checkpoint: str, jobs: int, *, at: float = 0.0, priority: int = 50) -> Batch:
    return Batch(at, user, priority, (Part(checkpoint, jobs, 10.0),))


class Diary(Record):
    """Also keeps what began when."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self.began_at: list[tuple[float, int, int]] = []

    def began(self, now: float, turn: Turn) -> None:
        super().began(now, turn)
        self.began_at.append((round(now, 3), turn.job.batch, turn.job.ord))


@pytest.mark.parametrize("name", policies(SMALL))
def test_every_job_runs_once(name: str) -> None:
    world = World(SMALL, policies(SMALL)[name], interval=1.0)
    world.record = Diary(SMALL)
    record = world.run()
    ran = Counter((number, ord) for _, number, ord in world.record.began_at)
    asked = {
        (number, ord)
        for number, batch in enumerate(SMALL.batches, 1)
        for ord in range(sum(part.jobs for part in batch.parts))
    }
    assert set(ran) == asked
    assert set(ran.values()) == {1}
    assert (record.done, record.left) == (SMALL.jobs, 0)


def test_the_same_seed_gives_the_same_run() -> None:
    def run(seed: int) -> object:
        made = mixed(cards=8, jobs=600, users=9, checkpoints=8, seed=seed)
        return result(World(made, ours, interval=1.0, seed=seed).run())

    assert run(1) == run(1) != run(2)


def test_first_come_first_served_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.dispatch.simulator.world.SPREAD", 0.0)
    tiny = trace([batch(1, "a", 2), batch(2, "b", 1, at=1.0), batch(1, "a", 1, at=2.0)])
    world = World(tiny, fifo)
    world.record = diary = Diary(tiny)
    record = world.run()
    # a loads 5 s, then two jobs of 10 s; b loads, one job; a loads again, for it has left.
    assert diary.began_at == [(0.0, 1, 0), (15.0, 1, 1), (25.0, 2, 0), (40.0, 3, 0)]
    assert (record.makespan, record.loads, record.load_seconds) == (55.0, 3, 15.0)
    assert list(record.waits) == [5.0, 15.0, 29.0, 43.0]


def test_interactive_jobs_go_first_on_their_card() -> None:
    urgent = batch(2, "a", 1, at=1.0, priority=90)
    tiny = trace([batch(1, "a", 50), urgent])
    record = World(tiny, ours).run()
    assert max(record.interactive_waits) < 5.0 + 10.0 * (1 + SPREAD)


def test_our_rules_keep_their_promises() -> None:
    long = mixed(cards=4, jobs=2000, users=9, checkpoints=6, seed=3)
    found = result(World(long, ours, interval=1.0).run())
    assert found.jain >= 0.95
    assert found.makespan <= 1.05 * bounds.makespan(long)
    assert found.loads <= 1.2 * fair_loads(long)
    crowd = max(1.0, len(long.checkpoints) / len(long.cards))
    assert found.longest_passed <= PATIENCE * crowd + 1.0


def test_ours_needs_fewer_loads_than_others_and_is_fairer() -> None:
    found = {
        name: result(World(SMALL, policy, interval=1.0).run())
        for name, policy in policies(SMALL).items()
    }
    own = found.pop("farm")
    assert all(own.loads < other.loads / 2 for other in found.values())
    assert all(own.makespan < other.makespan for other in found.values())
    assert own.interactive_p95 < found["fifo"].interactive_p95 / 5


def test_what_fits_no_card_never_runs() -> None:
    whole = trace([batch(1, "a", 2), batch(1, "b", 3)])
    checkpoints = {**whole.checkpoints, "b": Checkpoint("b", 2, 5.0)}
    record = World(dataclasses.replace(whole, checkpoints=checkpoints), ours).run()
    assert (record.done, record.left) == (2, 3)


def test_bounds_by_hand() -> None:
    two = trace([batch(1, "a", 10), batch(1, "b", 3, at=100.0)], cards=2, room=2)
    assert bounds.makespan(two) == 115.0  # 30 s of work from 100 s on, on two cards
    assert bounds.loads(two, 115.0) == 2
    assert bounds.loads(two, 60.0) == 3  # 100 s of a within 60 s take two cards
    # All ten jobs at once have both cards for 50 s, but no minute needs more than 100/60 of one.
    assert fair_loads(two) == 3


def test_a_user_who_has_all_cards_for_a_minute_needs_them_all() -> None:
    assert fair_loads(trace([batch(1, "a", 100)], cards=8)) == 8
    assert fair_loads(trace([batch(1, "a", 48), batch(2, "b", 48)], cards=8)) == 8


@pytest.mark.parametrize(("values", "index"), [([1, 1, 1], 1.0), ([1, 0], 0.5), ([0, 0], 1.0)])
def test_jain(values: list[float], index: float) -> None:
    assert jain(values) == index


def test_a_trace_is_read_as_it_was_written() -> None:
    assert read(lines(SMALL)) == SMALL


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("x", "Line 1 of the trace cannot be read"),
        ('{"card": {}}', "Line 1"),
        ('{"node": {"name": "x"}}', "Line 1"),
        ('{"user": {"id": 1}}', "no cards or no batches"),
        (
            '{"batch": {"at": 0, "user": 1, "priority": 50, "parts": '
            '[{"checkpoint": "a", "jobs": 1, "seconds": 1.0}]}}',
            "no checkpoint 'a'",
        ),
    ],
)
def test_a_broken_trace_is_refused(written: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read([written])


def test_cards_more_or_fewer() -> None:
    assert len(SMALL.with_cards(2).cards) == 10
    assert len({card.name for card in SMALL.with_cards(2).cards}) == 10
    assert SMALL.with_cards(-7).cards == SMALL.cards[:1]
    with pytest.raises(InvalidInput, match="leaves none"):
        SMALL.with_cards(-8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "best"], "There is no policy 'best'."),
        (["--workers", "2"], "no number of cards"),
        (["--trace", "/nowhere"], "cannot be read"),
    ],
)
def test_the_command_refuses(arguments: list[str], says: str) -> None:
    answer = CliRunner().invoke(app, ["simulate", "--cards", "2", "--jobs", "10", *arguments])
    assert answer.exit_code
    assert says in answer.stderr


def test_the_command_answers_what_if() -> None:
    told = ["simulate", "--cards", "4", "--jobs", "300", "--users", "4", "--workers", "+2"]
    answer = CliRunner().invoke(app, [*told, "--interval", "1"])
    assert answer.exit_code == 0, answer.output
    assert "farm, +2" in answer.stdout

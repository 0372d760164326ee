"""Users' queues: in order, and the same ones as long as nothing in them changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from farm.dispatch.queues import INTERACTIVE, NORMAL, Key, Queue, Queues, Run

RED = (("red", 1.0),)


def run(batch: int, first: int = 0, *, user: int = 1, **fields: object) -> Run:
    values = {"checkpoint": "a", "priority": 50, "count": 9, "first": first, "user": user}
    return Run(batch, **{**values, **fields})  # type: ignore[arg-type]


def heads(queue: Queue) -> list[tuple[int, int]]:
    return [run.head for run in queue.runs]


def test_each_user_wants_the_most_important_first_then_the_oldest_and_what_failed() -> None:
    urgent, again = run(3, priority=90), run(1, 40, count=1, retry=True)
    runs = [run(2), run(1, 8), run(1, 2), urgent, run(4, user=2), again]
    first, second = Queues().of(runs)
    assert heads(first) == [(3, 0), (1, 40), (1, 2), (1, 8), (2, 0)]
    assert (first.user, second.user, heads(second)) == (1, 2, [(4, 0)])


def test_only_the_queue_of_who_has_other_runs_is_made_anew() -> None:
    queues = Queues()
    runs = [run(1), run(2), run(3, user=2)]
    before = queues.of(runs)
    runs[1] = replace(runs[1], first=4, count=5)
    after = queues.of(replace(run) for run in runs)
    assert after[0] is not before[0]
    assert heads(after[0]) == [(1, 0), (2, 4)]
    assert after[1] is before[1]
    assert queues.of(runs[:2]) == after[:1]
    assert queues.of(runs)[1] is not before[1], "nothing is kept of who was away"


def test_what_a_queue_comes_to() -> None:
    runs = [run(1, cost=2.0, load=5.0), run(2, checkpoint="b", count=3, load=7.0), run(3, cost=1.5)]
    (queue,) = Queues().of(runs)
    assert queue.jobs == 21
    assert queue.work == {"a": 9 * 2.0 + 9 * 1.5, "b": 3.0}
    assert queue.loads.keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("priorities", "classes", "calmed"),
    [
        ([50, 40], {NORMAL: [50, 40]}, {NORMAL: [50, 40]}),
        ([95, 90, 50, 10], {INTERACTIVE: [95, 90], NORMAL: [50], 0: [10]}, None),
        ([10], {0: [10]}, {0: [10]}),
        ([90], {INTERACTIVE: [90]}, {NORMAL: [90]}),
    ],
)
def test_a_queue_by_class(
    priorities: list[int], classes: dict[int, list[int]], calmed: dict[int, list[int]] | None
) -> None:
    (queue,) = Queues().of([run(number, priority=each) for number, each in enumerate(priorities)])
    calmed = calmed or {NORMAL: [95, 90, 50], 0: [10]}
    for found, expected in ((queue.classes, classes), (queue.calmed, calmed)):
        told = {level: [run.priority for run in part.runs] for level, part in found.items()}
        assert list(told.items()) == list(expected.items())
    assert [run.priority for run in queue.most_important.runs] == priorities[:1]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((), [1, 2, 3, 4]),
        (("a",), [1, 2, 4]),
        (("a", RED), [2, 4]),
        (("a", RED, (64, 64)), [4]),
        (("a", RED, (8, 8)), []),
        (("c",), []),
    ],
)
def test_runs_that_are_alike(key: Key, expected: list[int]) -> None:
    runs = [run(1), run(2, loras=RED), run(3, checkpoint="b"), run(4, loras=RED, shape=(64, 64))]
    (queue,) = Queues().of(runs)
    assert [run.batch_id for run in queue.alike(key)] == expected

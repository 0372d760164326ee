"""Which runs of open batches placement may choose from, and what is left when it has chosen."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.db import backlog
from farm.db.backlog import OpenBatch
from farm.db.leases import Claim, Lease
from farm.db.spans import Span, count, without
from farm.dispatch import heads
from farm.dispatch.further import Further
from farm.dispatch.heads import DEPTH, Heads
from farm.dispatch.queues import Queues, Run
from farm.dispatch.snapshot import Seat, Snapshot

NO_DATABASE: Any = None
NOTHING_ELSE: Any = None
FAR = 10**6


def looked_at(
    monkeypatch: pytest.MonkeyPatch, needs: str, *batches: tuple[Span, ...]
) -> tuple[Heads, list[int]]:
    """Heads of batches with these spans, whose jobs need one checkpoint after the other, over and
    over, in stretches of ten; and how often they were read."""
    read: list[int] = []

    def open_batches(*_: Any, **__: Any) -> list[OpenBatch]:
        read.append(1)
        return [OpenBatch(id, 1, 50, [], spans) for id, spans in enumerate(batches, 1)]

    def make(batch: OpenBatch, span: Span, _: bool) -> Run | None:
        first, end = span
        name = needs[first // 10 % len(needs)]
        if name == "?":
            return None
        until = first // 10 * 10 + 10 if len(needs) > 1 else FAR
        return Run(batch.id, name, 50, min(end, until) - first, first)

    monkeypatch.setattr(backlog, "open_batches", open_batches)
    return Heads(make, Further(NOTHING_ELSE, make)), read


def told(found: list[Run]) -> list[tuple[int, int, str, int]]:
    return [(run.batch_id, run.first, run.checkpoint, run.count) for run in found]


@pytest.mark.parametrize(
    ("needs", "spans", "expected"),
    [
        ("a", ((0, 500_000),), [(0, "a", 500_000)]),
        ("a", ((3, 5), (9, 12)), [(3, "a", 2), (9, "a", 3)]),
        ("ab", ((4, 20),), [(4, "a", 6), (10, "b", 10)]),
        ("ab", ((4, 10), (17, 33)), [(4, "a", 6), (17, "b", 3), (20, "a", 10), (30, "b", 3)]),
        ("ab", ((0, FAR),), [(10 * n, "ab"[n % 2], 10) for n in range(DEPTH)]),
        ("ab?", ((5, 33),), [(5, "a", 5), (10, "b", 10)]),  # what cannot be read, and what follows
        ("?", ((0, 10),), []),
    ],
)
def test_the_first_runs_of_all_spans_are_heads(
    monkeypatch: pytest.MonkeyPatch,
    needs: str,
    spans: tuple[Span, ...],
    expected: list[tuple[int, str, int]],
) -> None:
    known, _ = looked_at(monkeypatch, needs, spans)
    assert [one[1:] for one in told(known.runs(NO_DATABASE, least=0))] == expected


def test_of_all_batches_so_many_runs_more_are_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "MORE", 3)
    known, _ = looked_at(monkeypatch, "abc", *[((0, 30),)] * 4)
    numbers = [run.batch_id for run in known.runs(NO_DATABASE, least=0)]
    assert numbers == [1, 1, 2, 2, 3, 3, 4]
    known.turn(1)
    assert len(known.runs(NO_DATABASE, least=0)) == 7
    monkeypatch.setattr(heads, "MORE", 9)
    known.turn(4)
    assert len(known.runs(NO_DATABASE, least=0)) == 9


def test_what_was_claimed_of_a_later_run_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    known, read = looked_at(monkeypatch, "ab", ((0, 40),))
    known.runs(NO_DATABASE, least=0)
    claims = [Claim(1, "s", count=3, first=10), Claim(1, "t", count=2, first=30)]
    placed = [Lease(1, ord, 1, "s") for ord in (10, 11, 12, 30, 31)]
    known.claimed(claims, placed)
    assert told(known.runs(NO_DATABASE, least=0)) == [
        (1, 0, "a", 10),
        (1, 13, "b", 7),
        (1, 20, "a", 10),
        (1, 32, "b", 8),
    ]
    assert len(read) == 1


@pytest.mark.parametrize(
    ("claims", "got", "again"),
    [
        ([Claim(1, "s", count=4, first=10)], 4, False),
        ([Claim(1, "s", count=4, first=10)], 3, True),  # somebody has changed it
        ([Claim(1, "s", count=20)], 20, True),  # behind it there may be another
        ([Claim(1, "s", ords=(3, 4))], 1, False),  # of what is to be tried again
    ],
)
def test_they_are_read_again_when_something_else_has_changed(
    monkeypatch: pytest.MonkeyPatch, claims: list[Claim], got: int, again: bool
) -> None:
    known, read = looked_at(monkeypatch, "ab", ((0, 20),))
    known.runs(NO_DATABASE, least=0)
    attempt = 2 if claims[0].ords else 1
    jobs = [ord for claim in claims for ord in claim.jobs][:got]
    known.claimed(claims, [Lease(1, ord, attempt, "s") for ord in jobs])
    known.runs(NO_DATABASE, least=0)
    assert len(read) == 1 + again


def test_one_user_has_no_more_than_their_share_left_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "ASIDE", 6)
    batches = [OpenBatch(id, 1 + id // 8, 50, [], ((0, 5),)) for id in range(1, 11)]

    def open_batches(*_: Any, aside: Collection[int], **__: Any) -> list[OpenBatch]:
        return [batch for batch in batches if batch.id not in aside]

    monkeypatch.setattr(backlog, "open_batches", open_batches)

    def make(batch: OpenBatch, span: Span, _: bool) -> Run | None:
        return Run(batch.id, "a", 50, 5, 0)

    known = Heads(make, Further(NOTHING_ELSE, make))
    for _ in range(2):
        shown = [run.batch_id for run in known.runs(NO_DATABASE, least=0)]
        known.leave_aside(shown)
    assert [run.batch_id for run in known.runs(NO_DATABASE, least=0)] == [4, 5, 6, 7]
    known.take_back()
    assert len(known.runs(NO_DATABASE, least=0)) == 10


def numbers(spans: tuple[Span, ...]) -> list[int]:
    return [ord for span in spans for ord in range(*span)]


SPANS = st.lists(st.integers(0, 60), unique=True, max_size=12).map(
    lambda edges: tuple(zip(*[iter(sorted(edges)[: len(edges) // 2 * 2])] * 2, strict=True))
)


@given(SPANS, st.integers(0, 60), st.integers(1, 30))
def test_what_is_left_of_spans(spans: tuple[Span, ...], first: int, length: int) -> None:
    gone = range(first, first + length)
    left = without(spans, (gone.start, gone.stop))
    assert numbers(left) == [ord for ord in numbers(spans) if ord not in gone]
    assert count(left) == len(numbers(left))
    assert all(low < high for low, high in left)


def test_each_job_is_of_its_own_run() -> None:
    again = Run(1, "z", 50, 1, 5, retry=True)
    runs = [again, Run(1, "a", 50, 4, 8), Run(1, "b", 50, 9, 20), Run(2, "c", 50, 2)]
    snapshot = Snapshot([Seat("s", "s", 4, 0)], Queues().of(runs))
    asked = [(1, 5), (1, 8), (1, 11), (1, 28), (2, 1)]
    assert [snapshot.run_of(*job).checkpoint for job in asked] == ["z", "a", "a", "b", "c"]
    for job in [(1, 4), (1, 12), (1, 29), (3, 0)]:
        with pytest.raises(LookupError):
            snapshot.run_of(*job)

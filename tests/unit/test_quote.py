"""Quotes: when shared work is done, and how large a batch is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.dispatch.cost import units
from farm.dispatch.quote import finish_seconds, parts_of
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec

TEMPLATE = {"checkpoint": "a", "prompt": "p", "width": 512, "height": 512, "steps": 10, "seed": 1}


@pytest.mark.parametrize(
    ("work", "others", "devices", "seconds"),
    [
        (100.0, [], 1, 100.0),
        (100.0, [], 4, 25.0),
        (100.0, [(1.0, 100.0)], 1, 200.0),
        (100.0, [(1.0, 1000.0)], 1, 200.0),  # who has more does not hold up who has less
        (100.0, [(1.0, 10.0)], 1, 110.0),  # who has less is gone soon
        (100.0, [(1.0, 10.0), (1.0, 50.0)], 1, 160.0),
        (100.0, [(3.0, 1000.0)], 1, 400.0),
        (100.0, [(1.0, 100.0)], 2, 100.0),
        (0.0, [(1.0, 100.0)], 1, 0.0),
    ],
)
def test_when_shared_work_is_done(
    work: float, others: list[tuple[float, float]], devices: int, seconds: float
) -> None:
    assert finish_seconds(work, others, devices) == pytest.approx(seconds)


@given(
    st.floats(0, 1e5),
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1e5)), max_size=6),
    st.integers(1, 9),
)
def test_it_ends_between_alone_and_after_everybody(
    work: float, others: list[tuple[float, float]], devices: int
) -> None:
    found = finish_seconds(work, others, devices)
    everything = work + sum(size for _, size in others)
    assert work / devices * (1 - 1e-9) <= found <= everything / devices * (1 + 1e-9) + 1e-9


def test_a_batch_is_counted_by_checkpoint() -> None:
    axes = (("checkpoint", ("a", "b")), ("steps", (10, 20)))
    batch = BatchSpec(template=TEMPLATE, axes=axes, count=50)
    parts = parts_of(batch)
    assert [(part.checkpoint, part.jobs) for part in parts] == [("a", 100), ("b", 100)]
    exact = sum(units(batch.job(ord)) for ord in range(100))
    assert parts[0].size == pytest.approx(exact, rel=0.05)
    assert parts[0].pixels == 100 * 512 * 512


def test_a_million_jobs_are_looked_at_in_a_few_places() -> None:
    batch = BatchSpec(template=TEMPLATE, count=1_000_000)
    (part,) = parts_of(batch)
    assert (part.jobs, part.size) == (1_000_000, pytest.approx(1e6 * units(batch.job(0))))


def test_listed_jobs_are_added_up() -> None:
    jobs = [JobSpec(**{**TEMPLATE, "checkpoint": name}) for name in "aba"]
    assert [(part.checkpoint, part.jobs) for part in parts_of(jobs)] == [("a", 2), ("b", 1)]
    assert parts_of(jobs)[0].size == 2 * units(jobs[0])

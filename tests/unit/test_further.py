"""No card is idle beside a job that it could make, however far back in however many batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.db import backlog, batches, inputs, jobs
from farm.db.backlog import OpenBatch
from farm.db.leases import Lease
from farm.db.spans import Span, without
from farm.dispatch import further, heads, sorts
from farm.dispatch.accounts import Accounts
from farm.dispatch.further import merged
from farm.dispatch.placement import place
from farm.dispatch.queues import Run
from farm.dispatch.snapshot import Seat, Snapshot
from farm.dispatch.sorts import following
from farm.dispatch.survey import Survey
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from tests.records import TEMPLATE

NO_DATABASE: Any = None
CHECKPOINTS = ("a", "b", "c")
WIDTHS = (64, 128, 512)
UPSCALER = "four"


@dataclass
class Batch:
    """An open batch, whose jobs follow from axes or are listed."""

    user: int
    tags: tuple[str, ...]
    of: BatchSpec | list[JobSpec]
    spans: tuple[Span, ...] = ()
    left: set[int] = field(default_factory=set)
    needs: list[Run] = field(default_factory=list)

    def __post_init__(self) -> None:
        of = self.of
        jobs = map(of.job, range(of.total)) if isinstance(of, BatchSpec) else of
        self.needs = [
            Run(
                1,
                job.checkpoint,
                50,
                1,
                largest=job.largest,
                upscalers=frozenset(job.upscalers),
                tags=frozenset(self.tags),
            )
            for job in jobs
        ]
        self.spans, self.left = ((0, len(self.needs)),), {*range(len(self.needs))}

    def listed(self) -> list[JobSpec]:
        assert not isinstance(self.of, BatchSpec)
        return self.of


class Farm:
    """What Postgres would tell the dispatcher of some batches, and sessions that make what they
    are given at once."""

    def __init__(self, found: Sequence[Batch], seats: Sequence[Seat]) -> None:
        self.batches = dict(enumerate(found, 1))
        self.seats = list(seats)
        self.now = 0.0

    def patch(self, patched: pytest.MonkeyPatch) -> None:
        patched.setattr(backlog, "open_batches", self.open_batches)
        patched.setattr(backlog.Retries, "look", lambda *_, **__: [])
        patched.setattr(batches, "specification", self.specification)
        patched.setattr(jobs, "checkpoint_run", self.checkpoint_run)
        patched.setattr(inputs, "sorts", self.sorts)
        patched.setattr(inputs, "following", self.following)
        patched.setattr("time.monotonic", lambda: self.now)
        self.survey = Survey(NO_DATABASE, Accounts())

    def open_batches(
        self, _: Any, *, least: int, each: int, limit: int, aside: Collection[int] = ()
    ) -> list[OpenBatch]:
        places: dict[int, Iterator[int]] = {}
        found = [
            (
                next(places.setdefault(batch.user, count())),
                OpenBatch(id, batch.user, 50, list(batch.tags), batch.spans),
            )
            for id, batch in self.batches.items()
            if batch.spans and id not in aside
        ]
        return [one for at, one in sorted(found, key=lambda pair: pair[0]) if at < each][:limit]

    def specification(self, _: Any, batch_id: int) -> BatchSpec | None:
        of = self.batches[batch_id].of
        return of if isinstance(of, BatchSpec) else None

    def checkpoint_run(self, _: Any, batch_id: int, ord: int) -> tuple[dict[int, JobSpec], int]:
        """Three at a time."""
        listed = self.batches[batch_id].listed()
        until = ord + 1
        while until < min(ord + 3, len(listed)) and files(listed[until]) == files(listed[ord]):
            until += 1
        sizes: dict[tuple[int, int], int] = {}
        for at in range(ord, until):
            sizes.setdefault(listed[at].size, at)
        return {at: listed[at] for at in sizes.values()}, until

    def sorts(
        self, _: Any, batch_id: int, *, after: int | None, limit: int
    ) -> list[tuple[int, JobSpec]]:
        by_number = {number(job): job for job in reversed(self.batches[batch_id].listed())}
        found = sorted(one for one in by_number.items() if after is None or one[0] > after)
        return found[:limit]

    def following(self, _: Any, batch_id: int, sort: int, ord: int) -> int | None:
        listed = enumerate(self.batches[batch_id].listed())
        return next((at for at, job in listed if at >= ord and number(job) == sort), None)

    def cycle(self) -> int:
        self.now += 1
        self.survey._heads.look_again()
        self.survey._seats = self.seats
        self.survey._pass_by(NO_DATABASE, self.seats)
        snapshot = Snapshot(self.seats, self.survey._queues(NO_DATABASE, least=0))
        found = place(snapshot)
        placed = [
            Lease(one.batch_id, ord, 1, one.session_id) for one in found.claims for ord in one.jobs
        ]
        for lease in placed:
            self.make(lease)
        self.survey.wait(found, 1.0)
        self.survey.note(found.claims, placed, snapshot)
        return len(placed)

    def make(self, lease: Lease) -> None:
        batch = self.batches[lease.batch_id]
        seat = next(one for one in self.seats if one.session_id == lease.session_id)
        assert seat.suits(batch.needs[lease.ord])
        batch.left.remove(lease.ord)
        batch.spans = without(batch.spans, (lease.ord, lease.ord + 1))
        warm = seat.warm | {batch.needs[lease.ord].checkpoint}
        self.seats[self.seats.index(seat)] = replace(seat, warm=warm)

    def forgotten(self) -> list[tuple[int, int]]:
        """Jobs that wait though some session could make them: all of them are free."""
        return [
            (id, ord)
            for id, batch in self.batches.items()
            for ord in sorted(batch.left)
            if any(seat.suits(batch.needs[ord]) for seat in self.seats)
        ]


def files(job: JobSpec) -> tuple[object, ...]:
    return job.checkpoint, job.upscalers


def number(job: JobSpec) -> int:
    return CHECKPOINTS.index(job.checkpoint) * 8 + WIDTHS.index(job.width) * 2 + len(job.upscalers)


def some(values: Sequence[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(st.sampled_from(values), min_size=1, unique=True).map(tuple)


SIZES = {
    "checkpoint": some(CHECKPOINTS),
    "width": some(WIDTHS),
    "steps": st.sampled_from([(1,), (1, 2, 3)]),
    "hires_upscaler": some(("Latent", UPSCALER)),
}
BASE = {**TEMPLATE, "height": 64, "hires_scale": 2, "denoising_strength": 0.5}
AXES = st.permutations(sorted(SIZES)).flatmap(
    lambda names: st.tuples(*(SIZES[name] for name in names), st.integers(1, 4)).map(
        lambda drawn: spec_of(dict(zip(names, drawn[:-1], strict=True)), drawn[-1])
    )
)
JOBS = st.builds(
    lambda checkpoint, width, upscaler: JobSpec(
        **{**BASE, "checkpoint": checkpoint, "width": width, "hires_upscaler": upscaler}
    ),
    st.sampled_from(CHECKPOINTS),
    st.sampled_from(WIDTHS),
    st.sampled_from(("Latent", UPSCALER)),
)
LISTS = st.lists(st.tuples(JOBS, st.integers(1, 7)), min_size=1, max_size=5).flatmap(
    lambda runs: st.sampled_from([1, 5]).map(
        lambda over: [job for _ in range(over) for job, times in runs for _ in range(times)]
    )
)
BATCHES = st.builds(
    Batch, st.integers(1, 2), st.sampled_from([(), (), ("red",)]), st.one_of(AXES, LISTS)
)
SEATS = st.builds(
    lambda has, enlarges, fits, tags: Seat(
        "", "", 4, 0, can_load=has, upscalers=enlarges, fits=fits, tags=tags
    ),
    st.frozensets(st.sampled_from(CHECKPOINTS)) | st.none(),
    st.frozensets(st.just(UPSCALER)) | st.none(),
    st.dictionaries(st.sampled_from(CHECKPOINTS), st.sampled_from([w * 2 * 128 for w in WIDTHS])),
    st.frozensets(st.just("red")),
)


def spec_of(axes: dict[str, Any], each: int) -> BatchSpec:
    named = sorted(axes.items(), key=lambda axis: axis[0] != "checkpoint")
    return BatchSpec(template=BASE, axes=tuple(named), count=each)


@settings(max_examples=40)
@given(
    st.lists(BATCHES, min_size=1, max_size=6),
    st.lists(SEATS, min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_no_session_is_idle_beside_work(found: list[Batch], seats: list[Seat], few: int) -> None:
    """Though few heads of few batches are looked at, and few batches left aside."""
    seats = [replace(seat, session_id=f"s{n}", worker=f"w{n}") for n, seat in enumerate(seats)]
    farm = Farm(found, seats)
    with pytest.MonkeyPatch.context() as patched:
        farm.patch(patched)
        for where, name in [
            (heads, "MORE"),
            (heads, "DEPTH"),
            (heads, "EACH"),
            (heads, "MANY"),
            (further, "EACH"),
            (further, "MOST"),
            (further, "LOOKS"),
            (sorts, "PAGE"),
            (further, "PAGE"),
        ]:
            patched.setattr(where, name, few)
        patched.setattr(further, "_FORGET", 10**6)  # as a look at all takes so few at a time longer
        quiet = 0
        while quiet < 150:
            quiet = 0 if farm.cycle() else quiet + 1
    assert farm.forgotten() == []


@settings(max_examples=100)
@given(AXES, st.data())
def test_the_next_job_with_some_indices(spec: BatchSpec, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, len(spec.axes) - 1)))
    ord = data.draw(st.integers(0, spec.total - 1))
    of = spec.coordinates(data.draw(st.integers(0, spec.total - 1)))
    wanted = {at: of[at] for at in places}

    def has(ord: int) -> bool:
        return all(spec.coordinates(ord)[at] == index for at, index in wanted.items())

    expected = next((at for at in range(ord, spec.total) if has(at)), None)
    assert following(spec, wanted, ord) == expected


EDGES = st.lists(st.integers(0, 40), unique=True, max_size=8).map(
    lambda edges: list(zip(*[iter(sorted(edges)[: len(edges) // 2 * 2])] * 2, strict=True))
)


@given(EDGES, EDGES)
def test_what_is_found_and_the_rest_of_the_heads_have_no_job_in_common(
    of_heads: list[Span], of_found: list[Span]
) -> None:
    def run(span: Span) -> Run:
        first, end = span
        return Run(1, "a", 50, min(end, first + 7) - first, first)

    together = merged(list(map(run, of_heads)), list(map(run, of_found)), run)
    ords = [ord for one in together for ord in range(one.first, one.first + one.count)]
    assert ords == sorted(set(ords))
    expected = {
        ord
        for one in map(run, of_heads + of_found)
        for ord in range(one.first, one.first + one.count)
    }
    assert set(ords) == expected
    firsts = {run(span).first for span in of_found}
    assert firsts <= {one.first for one in together}

"""Quotes: how large a batch is, what of it fits, how large its sheet will be."""

from __future__ import annotations

from collections import Counter

import pytest

from farm.dispatch.cost import units
from farm.dispatch.fit import fits_of, nearest
from farm.dispatch.parts import MAX_SHAPES, parts_of, shapes_of
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.sheet import MARGIN, MAX_PIXELS, grid, largest_cell, sheet_size

TEMPLATE = {"checkpoint": "a", "prompt": "p", "width": 512, "height": 512, "steps": 10, "seed": 1}


def test_a_batch_is_counted_by_checkpoint() -> None:
    axes = (("checkpoint", ("a", "b")), ("steps", (10, 20)))
    batch = BatchSpec(template=TEMPLATE, axes=axes, count=50)
    parts = parts_of(batch)
    assert [(part.checkpoint, part.jobs) for part in parts] == [("a", 100), ("b", 100)]
    exact = sum(units(batch.job(ord)) for ord in range(100)) / 100
    assert parts[0].size == pytest.approx(exact, rel=0.05)
    assert parts[0].pixels == 512 * 512
    assert [part.after(150) for part in parts] == [0, 50]


def test_a_million_jobs_are_looked_at_in_a_few_places() -> None:
    batch = BatchSpec(template=TEMPLATE, count=1_000_000)
    (part,) = parts_of(batch)
    assert (part.jobs, part.size) == (1_000_000, pytest.approx(units(batch.job(0))))


def test_listed_jobs_are_taken_in_order() -> None:
    jobs = [JobSpec(**{**TEMPLATE, "checkpoint": name}) for name in "aba"]
    parts = parts_of(jobs)
    assert [(part.checkpoint, part.first, part.end) for part in parts] == [
        ("a", 0, 1),
        ("b", 1, 2),
        ("a", 2, 3),
    ]
    assert parts[0].size == units(jobs[0])


def test_shapes_are_counted_exactly_whatever_else_varies() -> None:
    axes = (
        ("checkpoint", ("a", "b")),
        ("width", (256, 512)),
        ("steps", (1, 2, 3)),
        ("height", (64, 512)),
    )
    batch = BatchSpec(template=TEMPLATE, axes=axes, count=5)
    by_hand = Counter(
        (job.checkpoint, job.width, job.height) for job in map(batch.job, range(batch.total))
    )
    assert shapes_of(batch) == by_hand
    listed = [batch.job(ord) for ord in range(0, batch.total, 7)]
    assert sum(shapes_of(listed).values()) == len(listed)


def test_a_great_many_shapes_are_not_all_looked_at() -> None:
    sides = tuple(range(64, 4096, 8))
    batch = BatchSpec(template=TEMPLATE, axes=(("width", sides), ("height", sides)))
    assert len(shapes_of(batch)) == MAX_SHAPES


@pytest.mark.parametrize(
    ("size", "most", "other"),
    [
        ((1024, 1024), 512 * 512, (512, 512)),
        ((1024, 512), 512 * 256, (512, 256)),
        ((512, 1024), 512 * 512, (360, 720)),
        ((1024, 1024), 100, None),
        ((512, 512), 512 * 512, (512, 512)),
    ],
)
def test_the_nearest_size_keeps_the_shape(
    size: tuple[int, int], most: int, other: tuple[int, int] | None
) -> None:
    assert nearest(*size, most) == other


def test_peaks_are_told_at_a_few_sizes_and_found_between_them() -> None:
    told = {"fits": {"sd15": {"most": 400, "peaks": [[100, 1000], [200, 1500], [400, 4000]]}}}
    fit = fits_of(told)["sd15"]
    assert [fit.peak(pixels) for pixels in (100, 150, 200, 300, 400)] == [
        1000, 1250, 1500, 2750, 4000,
    ]  # fmt: skip
    assert fit.peak(0) == 500
    assert fits_of({"name": "an older worker"}) == {}


@pytest.mark.parametrize(
    ("axes", "count", "sizes"),
    [
        ((), 7, [(512, 512)]),
        ((("steps", (1, 2, 3)),), 1, [(512, 256)]),
        ((("steps", (1, 2, 3)),), 4, [(64, 64)]),
        (
            (("cfg_scale", (1, 2)), ("seed", (5, 6, 7)), ("steps", (1, 2))),
            3,
            [(512, 512), (64, 640)],
        ),
    ],
)
def test_a_sheet_is_as_large_as_it_is_drawn(
    axes: tuple[tuple[str, tuple[int, ...]], ...], count: int, sizes: list[tuple[int, int]]
) -> None:
    total = count
    for _, values in axes:
        total *= len(values)
    cells = grid(axes, count, total)
    margin = MARGIN[0] * bool(cells.row_labels), MARGIN[1] * bool(cells.column_labels)
    cell = largest_cell(sizes)
    drawn = margin[0] + cells.columns * cell[0], margin[1] + cells.rows * cell[1]
    assert sheet_size(axes, count, total, sizes) == drawn


def test_the_sheet_of_millions_is_sized_without_being_laid_out() -> None:
    width, height = sheet_size((), 10_000_000, 10_000_000, [(512, 512)])
    assert width * height <= MAX_PIXELS

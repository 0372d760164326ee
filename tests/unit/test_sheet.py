"""Contact sheets: where a job's cell is, and that no sheet becomes too large."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.spec.sheet import MAX_PIXELS, Grid, fitting, grid

Axes = list[tuple[str, list[Any]]]


@pytest.mark.parametrize(
    ("axes", "count", "total", "expected"),
    [
        ([], 1, 1, Grid(1, 1)),
        ([], 5, 5, Grid(2, 3)),
        ([("steps", [5, 10, 15])], 1, 3, Grid(1, 3, (), ("steps 5", "steps 10", "steps 15"), True)),
        (
            [("steps", [5, 10])],
            2,
            4,
            Grid(2, 2, ("image 1", "image 2"), ("steps 5", "steps 10"), True),
        ),
        (
            [("prompt", ["cat", "dog"]), ("cfg_scale", [1.0, 2.5])],
            1,
            4,
            Grid(2, 2, ("cat", "dog"), ("cfg_scale 1", "cfg_scale 2.5")),
        ),
        (
            [("sampler", ["a"]), ("steps", [1, 2]), ("prompt", ["cat", "dog"])],
            2,
            8,
            Grid(2, 4, ("a\nsteps 1", "a\nsteps 2"), ("cat", "", "dog", "")),
        ),
    ],
)
def test_the_last_axis_goes_across(axes: Axes, count: int, total: int, expected: Grid) -> None:
    assert grid(axes, count, total) == expected


SIZES = st.lists(st.integers(1, 6), max_size=4)


@given(sizes=SIZES, count=st.integers(1, 5))
def test_every_job_has_a_cell_of_its_own(sizes: list[int], count: int) -> None:
    axes: Axes = [(f"axis{place}", list(range(size))) for place, size in enumerate(sizes)]
    total = count
    for size in sizes:
        total *= size
    found = grid(axes, count, total)
    places = [found.place(ord) for ord in range(total)]
    assert len(set(places)) == total
    assert all(row < found.rows and column < found.columns for row, column in places)
    assert len(found.row_labels) in (0, found.rows)
    assert len(found.column_labels) in (0, found.columns)


def test_seeds_of_a_cell_stand_below_its_only_axis() -> None:
    found = grid([("steps", [5, 10])], 3, 6)
    assert [found.place(ord) for ord in range(6)] == [(r, c) for c in (0, 1) for r in (0, 1, 2)]


@given(
    cell=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    cells=st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)),
)
def test_a_sheet_is_never_over_its_limit(cell: tuple[int, int], cells: tuple[int, int]) -> None:
    width, height = fitting(cell, cells)
    assert 1 <= width <= cell[0]
    assert 1 <= height <= cell[1]
    assert width * cells[0] * height * cells[1] <= MAX_PIXELS


def test_a_sheet_that_fits_is_not_scaled() -> None:
    assert fitting((384, 256), (20, 20), margin=(200, 80)) == (384, 256)

"""Quotes: how large a batch is, what of it fits, how large its sheet will be."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.db.assets import Size
from farm.dispatch.cost import units, upscaled
from farm.dispatch.fit import fit, nearest
from farm.dispatch.parts import MAX_SHAPES, parts_of, shapes_of
from farm.spec.batch import BatchSpec
from farm.spec.job import JobSpec
from farm.spec.sheet import MARGIN, MAX_PIXELS, grid, largest_cell, sheet_size
from farm.worker.fits import fits
from farm.worker.memory import planner, profiles

TEMPLATE = {"checkpoint": "a", "prompt": "p", "width": 512, "height": 512, "steps": 10, "seed": 1}
AXES = {
    "hires_scale": st.sampled_from([1.0, 1.5, 2.0]),
    "hires_height": st.sampled_from([0, 640, 768]),
    "hires_checkpoint": st.sampled_from(["", "a", "b"]),
    "hires_upscaler": st.sampled_from(["Latent", "4x", "8x"]),
}


def test_a_batch_is_counted_by_checkpoint() -> None:
    axes = (("checkpoint", ("a", "b")), ("steps", (10, 20)))
    batch = BatchSpec(template=TEMPLATE, axes=axes, count=50)
    parts = parts_of(batch)
    assert [(part.checkpoint, part.jobs) for part in parts] == [("a", 100), ("b", 100)]
    exact = sum(units(batch.job(ord)) for ord in range(100)) / 100
    assert parts[0].size == pytest.approx(exact, rel=0.05)
    assert parts[0].pixels == 512 * 512
    assert [part.among([(150, 200)]) for part in parts] == [0, 50]
    assert [part.among([(90, 110), (199, 200)]) for part in parts] == [10, 11]


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


HIRES = (
    ("hires_scale", (1.0, 2.0)),
    ("steps", (10, 20)),
    ("hires_checkpoint", ("", "b")),
    ("hires_height", (0, 640)),
)


def test_images_in_two_passes_count_as_large_as_they_become() -> None:
    batch = BatchSpec(template=TEMPLATE, axes=HIRES, count=3)
    jobs = [batch.job(ord) for ord in range(batch.total)]
    by_hand = Counter((job.passes[-1].checkpoint, *job.size) for job in jobs)
    assert shapes_of(batch) == shapes_of(jobs) == by_hand
    assert by_hand["b", 1024, 1024] == 6
    (part,) = parts_of(batch)
    assert part.models == {job.models for job in jobs}
    assert part.checkpoints == {"a", "b"}
    assert part.pixels == sum(job.size[0] * job.size[1] for job in jobs) / len(jobs)
    assert [each.models for each in parts_of(jobs)] == [{job.models} for job in jobs]


def test_what_upscalers_are_shown_is_counted_where_they_have_something_to_do() -> None:
    axes = (("hires_scale", (1.0, 2.0)), ("hires_upscaler", ("Latent", "4x", "8x", "4x")))
    batch = BatchSpec(template=TEMPLATE, axes=axes)
    jobs = [batch.job(ord) for ord in range(batch.total)]
    (part,) = parts_of(batch)
    assert part.upscales == {"4x": 2 / 8, "8x": 1 / 8}
    assert [part.upscales for part in parts_of(jobs)[4:]] == [{}, {"4x": 1}, {"8x": 1}, {"4x": 1}]
    smaller = JobSpec(**TEMPLATE, hires_width=256, hires_upscaler="4x")
    assert (upscaled(smaller), smaller.upscalers) == ({}, ("4x",))


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


TOLD = {
    "memory": 3000,
    "share": 1.5,
    "bytes_a_weight": 2,
    "families": {"sd15": {"weights": 800, "peaks": [[100, 1000], [200, 1500], [400, 4000]]}},
}


@pytest.mark.parametrize(
    ("file", "weights", "most"),
    [
        (Size("sd15", "float16", 400), 600, 272),  # 2400 are left
        (Size("sd15", "float32", 800), 600, 272),  # held as float16
        (Size("sd15", "float16", 9000), 1200, 224),  # no more of it than of a whole one
        (Size("sd15", None, 0), 0, 320),
    ],
)
def test_peaks_are_told_at_a_few_sizes_and_found_between_them(
    file: Size, weights: int, most: int
) -> None:
    found = fit(TOLD, file)
    assert found
    assert [found.peak(pixels) - weights for pixels in (100, 150, 200, 300, 400)] == [
        1000, 1250, 1500, 2750, 4000,
    ]  # fmt: skip
    assert found.most == most
    assert found.peak(most) <= 3000 < found.peak(most + 1)


@pytest.mark.parametrize("told", [{}, {**TOLD, "families": {}}])
def test_who_does_not_say_what_fits_is_not_asked(told: dict[str, Any]) -> None:
    assert fit(told, Size("sd15", "float16", 400)) is None


@pytest.mark.parametrize("name", ["24gb", "8gb", "4gb"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_worker_tells_what_its_planner_would_allow(name: str, family: str) -> None:
    profile = profiles.by_name(name)
    whole = Size(family, "float16", 10**12)
    found = fit(fits(profile), whole)
    assert found
    for side in range(256, 4096, 264):
        rows = planner.rows_allowed(profile, family, side, side)
        peak = planner.peak_bytes(profile, family, side * side, planner.GUIDED_ROWS)
        assert found.peak(side * side) == pytest.approx(peak, rel=0.02)
        if abs(peak - profile.memory_bytes) > 0.02 * peak:
            assert (side * side <= found.most) == (rows >= planner.GUIDED_ROWS)


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


@given(
    axes=st.dictionaries(
        st.sampled_from(["hires_scale", "hires_height", "hires_checkpoint", "hires_upscaler"]),
        st.just(None),
        min_size=1,
    ).flatmap(
        lambda names: st.fixed_dictionaries(
            {name: st.lists(AXES[name], min_size=1, max_size=3, unique=True) for name in names}
        )
    )
)
def test_each_way_of_models_that_jobs_need_is_known_without_expanding(axes: dict[str, Any]) -> None:
    named = tuple((name, tuple(values)) for name, values in axes.items())
    batch = BatchSpec(template=TEMPLATE, axes=(("checkpoint", ("a", "c")), *named))
    for part in parts_of(batch):
        assert part.models == {batch.job(ord).models for ord in range(part.first, part.end)}

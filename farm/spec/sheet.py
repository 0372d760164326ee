"""Contact sheets: which cell a job has, what stands beside it, how large it may be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

MAX_PIXELS = 200_000_000
LARGEST_CELL = 384
"""Pixels of a cell's longer side."""
MARGIN = 200, 80
"""Width of the labels beside the rows and height of those above the columns, in pixels."""

Axes = Sequence[tuple[str, Sequence[Any]]]


@dataclass(frozen=True)
class Grid:
    """Cells of a sheet.

    Attributes:
        rows, columns: how many cells down and across.
        row_labels, column_labels: texts beside and above them; empty where there is none.
        down: jobs that follow each other stand below each other, not beside.
    """

    rows: int
    columns: int
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    down: bool = False

    def place(self, ord: int) -> tuple[int, int]:
        """Row and column of job ``ord``."""
        if self.down:
            column, row = divmod(ord, self.rows)
            return row, column
        return divmod(ord, self.columns)


def grid(axes: Axes, count: int, total: int) -> Grid:
    """The grid of a batch: the last axis across, the others down.

    Images of one cell stand side by side; with a single axis below each other, and without
    any axis they fill a square.
    """
    if not axes:
        columns = math.ceil(math.sqrt(total))
        return Grid(rows=math.ceil(total / columns), columns=columns)
    *others, last = axes
    across = [_label(last[0], value) for value in last[1]]
    if not others:
        down = tuple(f"image {index + 1}" for index in range(count)) if count > 1 else ()
        return Grid(count, len(across), down, tuple(across), down=True)
    beside = [
        "\n".join(_label(field, value) for (field, _), value in zip(others, values, strict=True))
        for values in product(*(values for _, values in others))
    ]
    above = [text if image == 0 else "" for text in across for image in range(count)]
    return Grid(len(beside), len(above), tuple(beside), tuple(above))


def sheet_size(
    axes: Axes, count: int, total: int, sizes: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Width and height in pixels of the sheet of a batch whose images have these sizes."""
    across, down = _extent(axes, count, total)
    margin = (MARGIN[0] if len(axes) > 1 or (axes and count > 1) else 0, MARGIN[1] if axes else 0)
    width, height = fitting(largest_cell(sizes), (across, down), margin=margin)
    return margin[0] + across * width, margin[1] + down * height


def largest_cell(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """A cell for images of these sizes, at most :data:`LARGEST_CELL` wide and high."""
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    scale = min(1.0, LARGEST_CELL / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _extent(axes: Axes, count: int, total: int) -> tuple[int, int]:
    """Cells across and down, as :func:`grid` lays them out."""
    if not axes:
        columns = math.ceil(math.sqrt(total))
        return columns, math.ceil(total / columns)
    across = len(axes[-1][1])
    if len(axes) == 1:
        return across, count
    return across * count, total // (across * count)


def fitting(
    cell: tuple[int, int], cells: tuple[int, int], *, margin: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """The size in pixels at which ``cells`` (across, down) of size ``cell`` make a sheet of at
    most MAX_PIXELS, ``margin`` included; the shape is kept, and no side falls below 1."""
    width, height = cell
    across, down = cells
    while (width * across + margin[0]) * (height * down + margin[1]) > MAX_PIXELS:
        if width == height == 1:
            break
        width, height = max(1, width * 9 // 10), max(1, height * 9 // 10)
    return width, height


def _label(field: str, value: Any) -> str:
    return value if isinstance(value, str) else f"{field} {value:g}"

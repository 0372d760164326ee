"""Contact sheets: which cell a job has, what stands beside it, how large it may be drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

MAX_PIXELS = 200_000_000

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

"""Contact sheets: all images of a batch on one picture, laid out by its axes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from farm.client import Batch, Job
from farm.errors import SetupError
from farm.spec.cells import shapes
from farm.spec.job import JobSpec
from farm.spec.sheet import MARGIN, Grid, fitting, grid, largest_cell

_LABEL = 14
_LINE = _LABEL + 4
_PAPER, _INK, _MISSING, _FAILED = "#ffffff", "#202020", "#e4e4e4", "#f6d5d5"


@dataclass(frozen=True)
class _Sheet:
    """A sheet being drawn: ``cell`` and ``margin`` are (width, height) in pixels."""

    picture: Image.Image
    grid: Grid
    cell: tuple[int, int]
    margin: tuple[int, int]

    def corner(self, ord: int) -> tuple[int, int]:
        row, column = self.grid.place(ord)
        return self.margin[0] + column * self.cell[0], self.margin[1] + row * self.cell[1]

    def write(self, text: str, corner: tuple[int, int], width: int, lines: int) -> None:
        """``text`` wrapped to ``width`` pixels and ``lines`` lines."""
        pen = ImageDraw.Draw(self.picture)
        letters = max(4, int(width / (_LABEL * 0.55)))
        wrapped = [part for line in text.split("\n") for part in textwrap.wrap(line, letters)]
        shown = wrapped[:lines]
        if len(wrapped) > lines and shown:
            shown[-1] = shown[-1][: letters - 1] + "…"
        font = ImageFont.load_default(_LABEL)
        pen.multiline_text(corner, "\n".join(shown), fill=_INK, font=font, spacing=4)


def draw(batch: Batch, folder: Path, path: Path) -> Path:
    """Draw the images that :meth:`Batch.download` saved in ``folder``, and save the sheet.

    Jobs that made none have a cell that says why. Cells are scaled down until the sheet has at
    most 200 megapixels. It is a PNG whatever the images are: a WebP ends at 16383 pixels, which is
    42 cells.
    """
    sheet = _blank(batch, largest_cell(list(_sizes(batch))))
    _draw_labels(sheet)
    for job in batch.jobs():
        file = job.image and folder / batch.file_name(job.image)
        if file and file.is_file():
            _paste(sheet, job, file)
        else:
            _draw_missing(sheet, job)
    try:
        partial = path.with_name(f".{path.name}.partial")
        sheet.picture.save(partial, "PNG")
        partial.replace(path)
    except OSError as error:
        raise SetupError(
            f"{path} could not be written: {error.strerror}.", field="folder", value=str(folder)
        ) from error
    return path


def _sizes(batch: Batch) -> Iterator[tuple[int, int]]:
    spec = batch.data["spec"]
    if spec is None:
        yield from (JobSpec.model_validate(job.spec).size for job in batch.jobs())
        return
    axes = {axis["field"]: tuple(axis["values"]) for axis in spec["axes"]}
    for passes in shapes(spec["template"], axes):
        _, width, height = passes[-1]
        yield width, height


def _blank(batch: Batch, cell: tuple[int, int]) -> _Sheet:
    spec = batch.data["spec"] or {"axes": [], "count": 1}
    axes = [(axis["field"], axis["values"]) for axis in spec["axes"]]
    cells = grid(axes, spec["count"], batch.total)
    margin = (
        MARGIN[0] if cells.row_labels else 0,
        MARGIN[1] if cells.column_labels else 0,
    )
    width, height = fitting(cell, (cells.columns, cells.rows), margin=margin)
    whole = (margin[0] + cells.columns * width, margin[1] + cells.rows * height)
    return _Sheet(Image.new("RGB", whole, _PAPER), cells, (width, height), margin)


def _draw_labels(sheet: _Sheet) -> None:
    width, height = sheet.cell
    labels = sheet.grid.column_labels
    for column, text in enumerate(labels):
        span = 1
        while column + span < len(labels) and not labels[column + span]:
            span += 1
        corner = (sheet.margin[0] + column * width + 4, 4)
        sheet.write(text, corner, span * width - 8, (MARGIN[1] - 8) // _LINE)
    for row, text in enumerate(sheet.grid.row_labels):
        corner = (4, sheet.margin[1] + row * height + 4)
        sheet.write(text, corner, MARGIN[0] - 8, max(1, (height - 8) // _LINE))


def _paste(sheet: _Sheet, job: Job, file: Path) -> None:
    with Image.open(file) as stored:
        small = stored.convert("RGB")
    small.thumbnail(sheet.cell, Image.Resampling.LANCZOS)
    left, top = sheet.corner(job.ord)
    across, down = (sheet.cell[0] - small.width) // 2, (sheet.cell[1] - small.height) // 2
    sheet.picture.paste(small, (left + across, top + down))


def _draw_missing(sheet: _Sheet, job: Job) -> None:
    left, top = sheet.corner(job.ord)
    width, height = sheet.cell
    failed = job.state == "failed"
    pen = ImageDraw.Draw(sheet.picture)
    box = (left, top, left + width - 1, top + height - 1)
    pen.rectangle(box, fill=_FAILED if failed else _MISSING)
    reason = (job.data["error"] or {}).get("detail", "") if failed else ""
    lines = (height - 8) // _LINE
    if lines > 0:
        sheet.write(f"{job.id} {job.state}\n{reason}", (left + 4, top + 4), width - 8, lines)

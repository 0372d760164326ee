"""farm download: the images of a batch as files, and a contact sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from farm.cli import output
from farm.cli.batches import BatchId
from farm.cli.output import AsJson
from farm.cli.sheet import draw
from farm.client import Batch, Farm

SHEET = "sheet.png"


def download(
    id: BatchId,
    folder: Annotated[Path, typer.Argument(help="Where to; it is made at need.")],
    sheet: Annotated[
        bool, typer.Option("--sheet", help=f"Also draw all of them on one {SHEET}.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Save the images a batch has made so far, as ORD-SEED.png, or .webp, .jpg, .avif.

    Run it again to go on: files that are there whole are not fetched again.

    Example: farm download 12 lions --sheet
    """
    with Farm() as farm:
        batch = farm.batch(id)
        saved = fetch(batch, folder, sheet=sheet)
    if as_json:
        output.print_json(saved)
        return
    screen = output.console()
    text = f"{saved['images']} images in {folder}, {saved['fetched']} of them new"
    screen.print(text, markup=False)
    if sheet:
        screen.print(f"contact sheet: {saved['sheet']}", markup=False)
    if not batch.ended:
        screen.print(f"The batch goes on: {output.counts_line(batch.counts)}.")


def fetch(batch: Batch, folder: Path, *, sheet: bool = False) -> dict[str, Any]:
    """Save what a batch has made, with a bar; says where, how many, how many were new."""
    columns = (TextColumn("saving"), BarColumn(None), MofNCompleteColumn())
    fetched = 0
    with Progress(*columns, console=output.console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=batch.counts["succeeded"])

        def saved(_: Path, new: bool) -> None:
            nonlocal fetched
            fetched += new
            progress.advance(task)

        paths = batch.download(folder, on_image=saved)
    told: dict[str, Any] = {"folder": str(folder), "images": len(paths), "fetched": fetched}
    if sheet:
        told["sheet"] = str(draw(batch, folder, folder / SHEET))
    return told

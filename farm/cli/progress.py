"""A batch as it happens, on a terminal or as plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from farm.cli.output import console, counts_line, eta_line
from farm.client import Batch

_INTERRUPTED = 130
_QUIET = 5.0
"""Seconds between lines where no bar can be drawn."""


def follow(batch: Batch) -> Batch:
    """Show progress on standard error until the batch has ended.

    Ctrl-C leaves it running and says how to come back to it.
    """
    screen = console(stderr=True)
    with _interruptible(batch, screen):
        if screen.is_terminal:
            _bar(batch, screen)
        else:
            _lines(batch, screen)
    return batch


class Pace:
    """Images a minute since it was made, and when the farm thinks that the batch ends."""

    def __init__(self, batch: Batch) -> None:
        self._begun = time.monotonic()
        self._before = batch.counts["succeeded"]

    def text(self, batch: Batch) -> str:
        made = batch.counts["succeeded"] - self._before
        seconds = time.monotonic() - self._begun
        parts = [
            f"{60 * made / seconds:.1f} images/min" if made and seconds else "",
            eta_line(batch.data["eta"]),
        ]
        return ", ".join(filter(None, parts))


def _bar(batch: Batch, screen: Console) -> None:
    columns = (
        TextColumn("batch {task.fields[id]}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    pace, steps = Pace(batch), 0
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task("", total=batch.total, id=batch.id, note="waiting")
        for name, data in batch.events():
            if name == "progress":
                steps += "step" in data
                note = pace.text(batch) or f"{steps} steps"
            else:
                note = pace.text(batch) or batch.state
            failed = batch.counts["failed"]
            progress.update(
                task,
                completed=_ended(batch),
                note=f"{note}, [red]{failed} failed[/]" if failed else note,
            )


def _lines(batch: Batch, screen: Console) -> None:
    pace, shown = Pace(batch), -_QUIET
    for name, _ in batch.events():
        if name == "end" or (name == "batch" and time.monotonic() - shown > _QUIET):
            shown = time.monotonic()
            note = pace.text(batch)
            line = f"batch {batch.id}: {_ended(batch)}/{batch.total}, {counts_line(batch.counts)}"
            screen.print(f"{line}, {note}" if note else line)


def _ended(batch: Batch) -> int:
    counts = batch.counts
    return counts["succeeded"] + counts["failed"] + counts["cancelled"]


@contextmanager
def _interruptible(batch: Batch, screen: Console) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        screen.print(
            f"Batch {batch.id} goes on. `farm watch {batch.id}` shows it again, "
            f"`farm cancel {batch.id}` ends it."
        )
        raise typer.Exit(_INTERRUPTED) from None

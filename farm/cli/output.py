"""How the command line speaks: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from farm.worker.memory.reading import MemoryReading

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
SOME_FAILED = 1
"""Exit code of a command that waited for a batch of which not every image was made."""

_STAGES = ("queue", "load", "encode", "denoise", "decode", "store")


_CONTROLS = {number: None for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}


class Screen(Console):
    """A console on which no name or prompt, which may be another person's, moves the cursor or
    sets the window's title."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **options)


def plain(text: str) -> str:
    """A text without control characters but for tabs and ends of lines."""
    return text.translate(_CONTROLS)


def console(*, stderr: bool = False) -> Screen:
    """Plain text unless it is a terminal; ``[cat:dog:0.5]`` is no picture of a dog."""
    soft = not sys.stdout.isatty()
    return Screen(stderr=stderr, highlight=False, emoji=False, soft_wrap=soft)


def print_json(document: Any) -> None:
    """The one document of a command that was asked for ``--json``."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table without lines; columns whose name begins with ``>`` are aligned to the right."""
    found = Table(title=title or None, box=None, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        found.add_column(column.lstrip(">"), justify="right" if right else "left")
    for row in rows:
        found.add_row(*(escape(_text(value)) for value in row))
    return found


def counts_line(counts: dict[str, int]) -> str:
    """``3 succeeded, 1 failed``: the states that any job is in."""
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "no job"


def jobs(count: int) -> str:
    """``1 job``, ``12 jobs``."""
    return "1 job" if count == 1 else f"{count} jobs"


def duration(seconds: float | None) -> str:
    """``0.42 s``, ``12.3 s``, ``3:05``, ``2:10:00``."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float | None) -> str:
    """Bytes as ``512 B``, ``3.4 MB``, ``1.2 GB`` (powers of 1024, as webui shows VRAM)."""
    if count is None:
        return "-"
    for unit in ("B", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GB"


def age(when: str) -> str:
    """How long ago an ISO time was."""
    return duration(max(0.0, (datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()))


def until(when: str) -> str:
    """How long it is to an ISO time; ``0.00 s`` once it has passed."""
    left = (datetime.fromisoformat(when) - datetime.now(UTC)).total_seconds()
    return duration(max(0.0, left))


def ends(eta: dict[str, Any] | None) -> str:
    """How long a batch takes still; nothing where that is not known, or a mere guess."""
    return until(eta["p50"]) if eta and eta["measured"] else ""


def eta_line(eta: dict[str, Any] | None) -> str:
    """``ends in 3:05, nine times in ten in 4:10``; nothing as with :func:`ends`."""
    likely = ends(eta)
    return f"ends in {likely}, nine times in ten in {until(eta['p90'])}" if eta and likely else ""


def stage_table(stats: dict[str, Any]) -> Table:
    """What each stage took, from the statistics of an attempt, or the mean over a batch."""
    known = [stage for stage in _STAGES if stats.get(f"{stage}_seconds") is not None]
    total = sum(stats[f"{stage}_seconds"] for stage in known) or 1.0
    rows = [
        (stage, duration(taken), f"{100 * taken / total:.0f}%")
        for stage in known
        for taken in [stats[f"{stage}_seconds"]]
    ]
    return table("", ("stage", ">mean", ">share"), rows)


def statistics_lines(stats: dict[str, Any]) -> list[str]:
    """Speed and memory in webui's words, as far as known."""
    lines = []
    speed = [
        form.format(stats[name])
        for name, form in (
            ("images_per_minute", "{:.1f} images/min"),
            ("iterations_per_second", "{:.2f} it/s"),
            ("mean_rows", "{:.1f} rows a forward"),
            ("gpu_seconds", "{:.1f} GPU-seconds"),
        )
        if stats.get(name) is not None
    ]
    if speed:
        lines.append(", ".join(speed))
    if stats.get("system_total"):
        names = ("vram_active", "vram_reserved", "system_used", "system_total")
        lines.append(str(MemoryReading(*(int(stats.get(name) or 0) for name in names))))
    if remark := stats.get("remark"):
        lines.append(f"The picture is {remark}.")
    if seconds := stats.get("upscale_host_seconds"):
        told = f"The card had no memory for {plain(str(stats.get('upscaler')))}"
        lines.append(f"{told}; the CPU enlarged the picture in {seconds:.0f} s.")
    return lines


def _text(value: Any) -> str:
    return "-" if value is None else plain(str(value))

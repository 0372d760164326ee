"""farm demo: real pictures within a minute, to see what Farm is."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli import output, progress
from farm.cli.download import fetch
from farm.cli.output import AsJson
from farm.cli.show import exit_code, outcome, statistics
from farm.client import Batch, Farm
from farm.settings import Settings
from farm.spec.batchfile import read

_FOLDER = Path("farm-demo")

Once = Annotated[bool, typer.Option("--once", help="Stop the farm at the end, if this started it.")]
Folder = Annotated[Path, typer.Option("--folder", "-o", help="Where the pictures go.")]


def demo(once: Once = False, folder: Folder = _FOLDER, as_json: AsJson = False) -> None:
    """Make a batch of small pictures on this machine, and a contact sheet of them.

    Starts a farm, or uses the one that runs, and leaves it running. Example: farm demo --once
    """
    # Imported here: the embedded farm brings in servers that no other command needs.
    from farm.embedded import background, home

    settings = Settings()
    found = home.running(settings.home)
    if not found:
        output.console(stderr=True).print(f"Starting a farm in {settings.home} …", markup=False)
    url = found or background.start(settings)
    try:
        with Farm(url, home=settings.home) as farm:
            batch = progress.follow(farm.submit(_request()))
            saved = fetch(batch, folder, sheet=True)
            _tell(batch, saved, as_json)
    finally:
        if once and not found:
            background.stop(settings.home)
    if not as_json:
        running = (
            "The farm has stopped."
            if once and not found
            else f"The farm runs on at {url}; `farm down` stops it."
        )
        output.console().print(running)
    raise typer.Exit(exit_code(batch))


def _request() -> dict[str, Any]:
    with as_file(files("farm") / "data" / "demo.yaml") as path:
        return read(path)


def _tell(batch: Batch, saved: dict[str, Any], as_json: bool) -> None:
    summary = batch.summary()
    if as_json:
        output.print_json({**batch.data, **saved, "summary": summary})
        return
    outcome(batch)
    statistics(summary)
    screen = output.console()
    screen.print(f"{saved['images']} pictures in {saved['folder']}", markup=False)
    screen.print(f"contact sheet: {saved['sheet']}", markup=False)

"""farm down: the farm on this machine ends, wherever it was started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from farm.cli import output
from farm.cli.up import settings_with

Home = Annotated[
    Path | None, typer.Option(help="Its folder; FARM_HOME, or the user's data folder.")
]


def down(home: Home = None) -> None:
    """Stop the farm of this machine, as Ctrl-C does; what it has not made waits for the next start.

    For one that `farm demo` has left running, or that runs in another terminal.
    """
    # Imported here: the embedded farm brings in servers that no other command needs.
    from farm.embedded import background

    folder = settings_with(home=home).home
    stopped = background.stop(folder)
    told = "The farm has stopped." if stopped else f"No farm runs in {folder}."
    output.console().print(told, markup=False)

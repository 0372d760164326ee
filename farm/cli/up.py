"""farm up: the one-machine farm."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from farm import log
from farm.settings import Settings

Host = Annotated[
    str | None,
    typer.Option(help="Where the API listens; 0.0.0.0 lets others in, who then need a key."),
]
Port = Annotated[int | None, typer.Option(min=1, max=65535, help="The API's port; 7900 if unset.")]
Workers = Annotated[
    str, typer.Option(help="auto (one a GPU, or one on the CPU), cpu, or how many, from 0.")
]
Home = Annotated[
    Path | None, typer.Option(help="Folder of all data; FARM_HOME, or the user's data folder.")
]


def up(host: Host = None, port: Port = None, workers: Workers = "auto", home: Home = None) -> None:
    """Run a whole farm on this machine until Ctrl-C: databases, API, dispatcher, workers.

    When it is ready it prints its URL. Everything it keeps is in one folder, so that a later
    start goes on where this one ended. Example: farm up --port 8000 --workers cpu
    """
    from farm.embedded import farm

    settings = settings_with(host=host, port=port, home=home)
    log.configure("farm", level=settings.log_level, as_json=settings.log_json)
    farm.up(settings, workers=workers, say=typer.echo)


def settings_with(**options: Any) -> Settings:
    """The environment's settings, overridden by the options that were given."""
    return Settings(**{name: value for name, value in options.items() if value is not None})

"""farm api, dispatcher, worker, migrate: the single processes of a larger farm."""

from __future__ import annotations

from typing import Annotated

import typer

from farm import log
from farm.settings import Settings

Gpus = Annotated[
    str, typer.Option(help="all, some by nvidia-smi's number (0,2), cpu, or auto: all or the CPU.")
]


def api() -> None:
    """Run one API process; FARM_DATABASE_URL and FARM_BROKER_URL say where the servers are."""
    from farm.api.__main__ import main

    main()


def dispatcher() -> None:
    """Run a dispatcher; where several run, one leads and the others stand by."""
    from farm.dispatch.__main__ import main

    main()


def worker(gpus: Gpus = "auto") -> None:
    """Join this host's GPUs to a farm: one worker process for each, restarted when it dies.

    Ctrl-C drains: what runs may finish within FARM_DRAIN_SECONDS. Example:
    FARM_DATABASE_URL=... FARM_BROKER_URL=... farm worker --gpus 0,2
    """
    from farm.worker import launcher

    settings = Settings()
    log.configure("launcher", level=settings.log_level, as_json=settings.log_json)
    settings.required("database_url")
    settings.required("broker_url")
    # A worker that overstays its drain ends itself 10 s later.
    launcher.launch(launcher.discover(gpus), grace=settings.drain_seconds + 12)


def migrate() -> None:
    """Bring the database at FARM_DATABASE_URL to this version's schema; safe to repeat."""
    from farm.db.migrate import upgrade

    settings = Settings()
    log.configure("migrate", level=settings.log_level, as_json=settings.log_json)
    upgrade(settings.required("database_url"))
    typer.echo("The database is up to date.")

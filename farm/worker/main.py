"""Puts a worker together: one process that holds one device."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import psutil
import torch

from farm import log
from farm.broker.progress import Progress
from farm.db import health, sessions
from farm.db.database import POOLS, Database
from farm.db.sessions import NewSession
from farm.dispatch.store import opened
from farm.settings import Settings
from farm.supervisor import watch_lifeline
from farm.worker.accountant import Accountant
from farm.worker.engine import Engine
from farm.worker.evidence import Evidence
from farm.worker.fits import fits
from farm.worker.launcher import gpus
from farm.worker.librarian import Librarian
from farm.worker.memory import profiles
from farm.worker.memory.custom import is_file, read_profile
from farm.worker.memory.experience import Experience
from farm.worker.memory.meter import Meter
from farm.worker.memory.profiles import GIB, MemoryProfile
from farm.worker.memory.snapshot import Snapshots
from farm.worker.models.attention import backend
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder
from farm.worker.models.library import Library
from farm.worker.notebook import Notebook
from farm.worker.orders import Orders
from farm.worker.reporter import Reporter
from farm.worker.service import Service
from farm.worker.watchdog import Watchdog

_log = logging.getLogger(__name__)

HOST_SHARE = 0.4
"""Of a host's memory that its workers together keep checkpoints in."""


def main() -> None:
    """Work until SIGTERM, then give back what cannot be finished in time."""
    settings = Settings()
    log.configure(settings.worker_name, level=settings.log_level, as_json=settings.log_json)
    watch_lifeline()
    gc.freeze()  # else each full collection walks all libraries: a quarter of a second
    # Until Celery takes the signal over, a worker told to stop just ends, in good order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings.home / "compiled"))
    device = torch.device("cpu" if settings.device == "cpu" else "cuda")
    url, name = settings.required("database_url"), settings.worker_name
    # Frozen for longer than its lease it has lost its jobs: others must be able to have them.
    idle = settings.lease_seconds
    with Database(url, max_size=POOLS["worker"], name=name, idle=idle) as db:
        _Worker(settings, db, device).work()


class _Worker:
    """The parts of one worker and how they hang together."""

    def __init__(self, settings: Settings, db: Database, device: torch.device) -> None:
        self._settings = settings
        self._db = db
        self._meter = Meter(device)
        profile = _profile(settings.profile, device, self._meter.sample().system_total)
        library = _library(settings.models)
        host_bytes = _host_bytes(settings.host_cache_gb, device)
        self._models = ModelCache(library, profile, device, host_bytes=host_bytes)
        self._librarian = Librarian(
            db,
            library,
            host=socket.gethostname(),
            loading=lambda: self._models.loading,
            scanned=self._models.drop_changed,
            every=settings.scan_seconds,
        )
        self._progress = Progress(settings.required("broker_url"))
        self._reporter = Reporter(self._progress)
        self._watchdog = Watchdog(
            patience=settings.hang_seconds, settle=self._settle, tell=self._die
        )
        accountant, described = Accountant(), _describe(device, self._meter)
        self._notebook = _notebook(db, described["name"], profile)
        snapshots = Snapshots(device)
        self._engine = Engine(
            self._models,
            profile,
            device,
            assets=library,
            on_progress=self._reporter,
            watched=self._reporter.watched,
            on_preview=self._reporter.show,
            on_lost=self._watchdog.lost,
            accountant=accountant,
            experience=Experience(self._notebook.known(), self._notebook.note),
        )
        images = opened(db, settings.storage_url)
        new = _session(settings, db, profile, described)
        self._orders = Orders(
            self._models,
            self._engine,
            images,
            worker=new.worker,
            accountant=accountant,
            snapshots=snapshots,
            answer=partial(health.answer, db, new.id),
        )
        self._service = Service(
            settings,
            db,
            self._engine,
            new,
            images=images,
            progress=self._progress,
            hashes=self._librarian.sha256,
            report=self._report,
            obey=self._orders.obey,
            accountant=accountant,
            evidence=Evidence(snapshots, images).since,
        )

    def work(self) -> None:
        """Consume until told to stop, then leave nothing behind."""
        self._engine.start()
        self._watchdog.watch(self._engine)
        self._librarian.start()
        try:
            self._service.work()
        finally:
            self._librarian.stop()
            self._orders.stop()
            self._reporter.stop()
            self._watchdog.stop()
            self._engine.stop()
            self._notebook.write()
            self._progress.close()

    def _settle(self, seconds: float) -> None:
        self._service.settle(seconds)

    def _die(self, error: dict[str, str]) -> None:
        self._service.die(error)

    def _report(self) -> tuple[Sequence[str], dict[str, Any]]:
        self._notebook.write()
        counters, reading = self._engine.counters, self._meter.sample()
        stats = {
            "busy_seconds": counters.busy_seconds,
            "forwards": counters.forwards,
            "rows": counters.rows,
            "memory": asdict(reading),
            "models": {
                **asdict(self._models.statistics),
                "in_host": self._models.in_host,
                "upscalers": self._engine.upscalers,
            },
            "refused_orders": self._orders.refused,
        }
        return self._models.resident, stats


def _notebook(db: Database, card: str, profile: MemoryProfile) -> Notebook:
    return Notebook(db, card=card, limit=profile.memory_bytes, torch=torch.__version__)


def _session(
    settings: Settings, db: Database, profile: MemoryProfile, device: dict[str, Any]
) -> NewSession:
    return NewSession(
        id=secrets.token_hex(8),
        worker=_free_name(db, settings.worker_name),
        host=socket.gethostname(),
        pid=os.getpid(),
        device=device,
        profile=profile.name,
        # Every message starts at once and waits in the engine, so that a finished job's
        # rows are taken by the next one between two steps, not after a round trip.
        capacity=profile.slots + profile.lookahead,
        fits=fits(profile),
        tags=settings.tags,
    )


def _profile(name: str, device: torch.device, total_bytes: int) -> MemoryProfile:
    if name == "auto":
        return profiles.choose(device.type, total_bytes)
    found = read_profile(Path(name)) if is_file(name) else profiles.by_name(name)
    backend(found.attention)  # better now than at every job
    return found


def _library(folders: Sequence[Path]) -> Library:
    for folder in folders:
        if not folder.is_dir():
            _log.warning("there is no model folder %s", folder)
    return Library([builtin_folder(), *folders])


def _host_bytes(told_gb: float | None, device: torch.device) -> int:
    """Host memory for checkpoints that left the device. On a CPU there is no other memory."""
    if told_gb is not None:
        return int(told_gb * GIB)
    if device.type == "cpu":
        return 0
    return int(psutil.virtual_memory().total * HOST_SHARE / len(gpus()))


def _free_name(db: Database, wanted: str) -> str:
    """``wanted``, or ``wanted-2`` and so on while another process of this host goes by it."""
    host = socket.gethostname()
    taken = {
        session.worker
        for session in sessions.live(db)
        if session.host == host and psutil.pid_exists(session.pid)
    }
    names = chain([wanted], (f"{wanted}-{number}" for number in count(2)))
    return next(name for name in names if name not in taken)


def _describe(device: torch.device, meter: Meter) -> dict[str, Any]:
    total = meter.sample().system_total
    if device.type == "cpu":
        return {"type": "cpu", "name": f"CPU, {os.cpu_count()} cores", "total_bytes": total}
    return {"type": "cuda", "name": torch.cuda.get_device_name(), "total_bytes": total}

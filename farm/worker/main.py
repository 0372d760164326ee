"""Puts a worker together: one process that holds one device."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from farm import log
from farm.broker.progress import Progress
from farm.db import assets
from farm.db.assets import Asset
from farm.db.database import Database
from farm.db.sessions import NewSession
from farm.settings import Settings
from farm.storage import ImageStore
from farm.supervisor import watch_lifeline
from farm.worker.attempt import Attempts
from farm.worker.engine import Engine
from farm.worker.memory import profiles
from farm.worker.memory.meter import Meter
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import CheckpointFile, builtin_folder, scan
from farm.worker.reporter import Reporter
from farm.worker.session import Session
from farm.worker.tasks import consume
from farm.worker.writer import Writer

_log = logging.getLogger(__name__)


def main() -> None:
    """Work until SIGTERM, then give back what cannot be finished in time."""
    settings = Settings()
    log.configure(settings.worker_name, level=settings.log_level, as_json=settings.log_json)
    watch_lifeline()
    device = torch.device("cpu" if settings.device == "cpu" else "cuda")
    with Database(settings.required("database_url"), max_size=4, name=settings.worker_name) as db:
        _Worker(settings, db, device).work()


class _Worker:
    """The parts of one worker and how they hang together."""

    def __init__(self, settings: Settings, db: Database, device: torch.device) -> None:
        self._settings = settings
        self._device = device
        self._meter = Meter(device)
        profile = profiles.choose(device.type, self._meter.sample().system_total)
        files = scan([builtin_folder(), *settings.models])
        assets.register(db, map(_asset, files))
        self._models = ModelCache(files, profile, device)
        self._progress = Progress(settings.required("broker_url"))
        self._reporter = Reporter(self._progress)
        self._engine = Engine(self._models, profile, device, on_progress=self._reporter)
        # Every message starts at once and waits in the engine, so that a finished job's rows
        # are taken by the next one between two steps, not after a round trip.
        self._concurrency = profile.slots + profile.lookahead
        session_id = uuid.uuid4().hex
        self._writer = Writer(db, session_id, settings.worker_name)
        self._attempts = Attempts(
            db,
            self._engine,
            session_id=session_id,
            profile=profile.name,
            images=ImageStore(settings.storage_url),
            writer=self._writer,
            progress=self._progress,
        )
        self._engine.start()
        self._session = Session(
            db,
            NewSession(
                id=session_id,
                worker=settings.worker_name,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=_describe(device, self._meter),
                profile=profile.name,
                capacity=self._concurrency,
            ),
            lease=settings.lease_seconds,
            report=self._report,
            cancel=self._attempts.cancel,
        )
        _log.info("session %s is live on %s, profile %s", session_id, device, profile.name)

    def work(self) -> None:
        """Consume until told to stop, then leave nothing behind."""
        consume(
            self._settings.required("broker_url"),
            self._session.id,
            concurrency=self._concurrency,
            run=self._attempts.run,
            drain=self._begin_drain,
        )
        self._session.close()
        self._writer.stop()
        self._reporter.stop()
        self._engine.stop()
        self._progress.close()

    def _begin_drain(self) -> None:
        """Called in a signal handler, so all it does is start a thread."""
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        grace = self._settings.drain_seconds
        _log.info("draining: %.0f s for what runs", grace)
        self._attempts.drain()
        self._session.drain()
        _in(grace, self._attempts.release)
        _in(grace + 10, lambda: os._exit(1))

    def _report(self) -> tuple[Sequence[str], dict[str, Any]]:
        counters, reading = self._engine.counters, self._meter.sample()
        stats = {
            "images": self._attempts.succeeded,
            "busy_seconds": counters.busy_seconds,
            "forwards": counters.forwards,
            "rows": counters.rows,
            "memory": asdict(reading),
        }
        return self._models.resident, stats


def _in(seconds: float, act: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True  # a worker that has nothing left to do ends at once
    timer.start()


def _describe(device: torch.device, meter: Meter) -> dict[str, Any]:
    total = meter.sample().system_total
    if device.type == "cpu":
        return {"type": "cpu", "name": f"CPU, {os.cpu_count()} cores", "total_bytes": total}
    return {"type": "cuda", "name": torch.cuda.get_device_name(), "total_bytes": total}


def _asset(file: CheckpointFile) -> Asset:
    return Asset(
        name=file.name,
        family=file.family,
        bytes=file.bytes,
        path=str(file.path),
        defaults=dict(file.defaults),
        error=file.error,
    )

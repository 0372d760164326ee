"""A worker process whose engine is a stand-in: ``python -m tests.standin_worker``.

Everything else is the real thing: session, Celery, attempts, writer, store. It starts in a second,
because it needs no torch. The environment says what it does and what goes wrong in it:

``STANDIN_SECONDS``   what an image takes (0.1)
``STANDIN_PLACES``    jobs it holds at once (4), half of which are made at the same time
``STANDIN_FAULTS``    a folder: while a file ``full`` is in it, the disk is full; a number in a file
                      ``clock`` is how many seconds this process's clock is wrong

An image whose prompt is ``poison`` kills the process; one whose prompt is ``fails 2`` fails in its
first two attempts.
"""

from __future__ import annotations

import datetime
import errno
import os
import time
from pathlib import Path

FAULTS = Path(os.environ.get("STANDIN_FAULTS", "/nowhere"))


def _skew() -> float:
    try:
        return float((FAULTS / "clock").read_text() or 0)
    except OSError:
        return 0.0


_time = time.time


class _Skewed(datetime.datetime):
    __slots__ = ()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Skewed:
        return super().now(tz) + datetime.timedelta(seconds=_skew())


# Before anyone imports them from there: Celery and kombu keep their own names of them.
time.time = lambda: _time() + _skew()
datetime.datetime = _Skewed  # type: ignore[misc]

import secrets  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from concurrent.futures import Future, ThreadPoolExecutor  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from threading import Event, Lock  # noqa: E402

import numpy as np  # noqa: E402

from farm import log  # noqa: E402
from farm.broker.progress import Progress  # noqa: E402
from farm.db import assets  # noqa: E402
from farm.db.assets import Asset  # noqa: E402
from farm.db.database import POOLS, Database  # noqa: E402
from farm.db.sessions import NewSession  # noqa: E402
from farm.dispatch.store import opened  # noqa: E402
from farm.errors import Cancelled  # noqa: E402
from farm.settings import Settings  # noqa: E402
from farm.spec.job import JobSpec  # noqa: E402
from farm.supervisor import watch_lifeline  # noqa: E402
from farm.worker.accountant import Accountant  # noqa: E402
from farm.worker.engine.stats import Ledger, Rendered  # noqa: E402
from farm.worker.engine.timeline import Timeline  # noqa: E402
from farm.worker.service import Service  # noqa: E402

DEFAULTS = {"width": 64, "height": 64, "steps": 4, "cfg_scale": 3.0, "sampler": "Euler a"}


class StandInEngine:
    """Takes as long as an engine might, and paints one colour."""

    def __init__(self, seconds: float, places: int, accountant: Accountant) -> None:
        self.timeline = Timeline()
        self._accountant = accountant
        self._lock = Lock()
        self._at_work = 0
        self._seconds = seconds
        self._pool = ThreadPoolExecutor(max(1, places // 2))
        self._cancelled: dict[str, Event] = {}

    def submit(self, key: str, spec: JobSpec, *, rank: int = 1) -> Future[Rendered]:
        self._cancelled[key] = Event()
        return self._pool.submit(self._render, key, spec)

    def cancel(self, key: str) -> None:
        if cancelled := self._cancelled.get(key):
            cancelled.set()

    def _render(self, key: str, spec: JobSpec) -> Rendered:
        if spec.prompt == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if spec.prompt.startswith("fails ") and int(key.split(".")[1]) <= int(spec.prompt[6:]):
            raise RuntimeError("something is loose")
        with self._working(key):
            cancelled = self._cancelled[key].wait(self._seconds)
        if cancelled:
            raise Cancelled("It was cancelled.")
        del self._cancelled[key]
        colour = np.random.default_rng(spec.seed).integers(0, 255, 3, dtype=np.uint8)
        image = np.broadcast_to(colour, (spec.height, spec.width, 3))
        return Rendered(np.ascontiguousarray(image), Ledger().close())

    @contextmanager
    def _working(self, key: str) -> Iterator[None]:
        """As on a device: what is made at the same time shares it."""
        with self._lock:
            self._at_work += 1
            self._accountant.wake()
        began = time.monotonic()
        yield
        with self._lock:
            self._accountant.work("denoise", {key: time.monotonic() - began})
            self._at_work -= 1
            if not self._at_work:
                self._accountant.rest()


def _break_disks() -> None:
    """Have writing files to their end fail while the disk is said to be full."""
    fsync = os.fsync

    def full(file: int) -> None:
        if (FAULTS / "full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    os.fsync = full


def main() -> None:
    settings = Settings()
    log.configure(settings.worker_name, level=settings.log_level, as_json=settings.log_json)
    watch_lifeline()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _break_disks()
    places = int(os.environ.get("STANDIN_PLACES", "4"))
    accountant = Accountant()
    engine = StandInEngine(float(os.environ.get("STANDIN_SECONDS", "0.1")), places, accountant)
    host = socket.gethostname()
    url, name = settings.required("database_url"), settings.worker_name
    with Database(url, max_size=POOLS["worker"], name=name) as db:
        demo = Asset("demo", "sdxl", 1, "/demo.safetensors", DEFAULTS, None)
        assets.register(db, host, [demo])
        progress = Progress(settings.required("broker_url"))
        device = {"type": "cpu", "name": "a stand-in", "total_bytes": 8 << 30}
        Service(
            settings,
            db,
            engine,  # type: ignore[arg-type]
            NewSession(
                id=secrets.token_hex(8),
                worker=settings.worker_name,
                host=host,
                pid=os.getpid(),
                device=device,
                profile="cpu",
                capacity=places,
            ),
            images=opened(db, settings.storage_url),
            progress=progress,
            hashes=lambda *_: None,
            report=lambda: (["demo"], {}),
            obey=lambda *_: None,
            accountant=accountant,
        ).work()
        progress.close()


if __name__ == "__main__":
    main()

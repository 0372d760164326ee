"""Stand-in workers and further dispatchers beside a whole farm, each restarted when it dies."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import psutil

from farm.embedded import sockets
from farm.supervisor import Process, Supervisor
from tests.conftest import eventually
from tests.wholefarm import WholeFarm

ROOT = Path(__file__).parents[1]


class Crew:
    """Joins ``farm`` with ``workers`` stand-in workers, ``cpu0`` and so on, and ``dispatchers``.

    Args:
        environment: for the workers, see :mod:`tests.standin_worker`.
    """

    def __init__(
        self, farm: WholeFarm, *, workers: int = 2, dispatchers: int = 0, **environment: str
    ) -> None:
        self.farm = farm
        self.faults = farm.home / "faults"
        self.faults.mkdir(exist_ok=True)
        database, broker = sockets.urls(farm.home)
        told = {
            **{name: value for name, value in farm.environment.items() if name[:5] == "FARM_"},
            "FARM_HOME": str(farm.home),
            "FARM_DATABASE_URL": database,
            "FARM_BROKER_URL": broker,
            "PYTHONPATH": str(ROOT),
        }
        self._processes = [
            Process(f"standby{number}", [sys.executable, "-m", "farm.dispatch"], told)
            for number in range(dispatchers)
        ]
        self.names = [f"cpu{number}" for number in range(workers)]
        self._processes += [
            Process(
                name,
                [sys.executable, "-m", "tests.standin_worker"],
                {
                    **told,
                    "FARM_WORKER_NAME": name,
                    "FARM_DRAIN_SECONDS": "3",
                    "STANDIN_FAULTS": str(self.faults),
                    **environment,
                },
                grace=20,
            )
            for name in self.names
        ]
        self._supervisor = Supervisor(farm.home / "crew")
        self._thread = threading.Thread(target=self._supervisor.run)

    def start(self) -> None:
        self._supervisor.start(*self._processes)
        self._thread.start()
        self.wait_live()

    def wait_live(self) -> None:
        """Wait until every worker has a session."""
        eventually(lambda: set(self.names) <= self._live(), within=60)

    def _live(self) -> set[str]:
        with self.farm.database() as db:
            rows = db.all("SELECT worker FROM sessions WHERE ended_at IS NULL AND state = 'live'")
        return {row["worker"] for row in rows}

    def worker(self, name: str) -> psutil.Process:
        """The process of a worker."""
        for child in psutil.Process(os.getpid()).children():
            if _module(child) == "tests.standin_worker" and child.environ()["FARM_WORKER_NAME"] == name:
                return child
        raise LookupError(name)

    def stop(self) -> None:
        self._supervisor.request_stop()
        self._thread.join()
        self._supervisor.stop()


def _module(process: psutil.Process) -> str | None:
    try:
        line = process.cmdline()
        return line[2] if line[1:2] == ["-m"] else None
    except (psutil.Error, IndexError):
        return None

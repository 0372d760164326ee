"""Stand-in workers and further dispatchers beside a whole farm, each restarted when it dies."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from farm.db.database import Database
from farm.embedded import sockets
from farm.supervisor import Process, Supervisor
from tests.conftest import eventually
from tests.wholefarm import WholeFarm

ROOT = Path(__file__).parents[1]
WORKER, _DISPATCHER = "tests.standin_worker", "farm.dispatch"


class Crew:
    """Joins ``farm`` with a stand-in worker of each name, and with so many dispatchers.

    Args:
        module: what the workers run.
        environment: for the workers, see :mod:`tests.standin_worker`.
    """

    def __init__(
        self,
        farm: WholeFarm,
        names: Sequence[str],
        *,
        dispatchers: int = 0,
        module: str = WORKER,
        **environment: str,
    ) -> None:
        self.farm = farm
        self.names = names
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
            Process(f"standby{number}", [sys.executable, "-m", _DISPATCHER], told)
            for number in range(dispatchers)
        ]
        for name in names:
            own = {
                "FARM_WORKER_NAME": name,
                "FARM_DRAIN_SECONDS": "3",
                "STANDIN_FAULTS": str(self.faults),
            }
            argv = [sys.executable, "-m", module]
            self._processes.append(Process(name, argv, {**told, **own, **environment}, grace=20))
        self._supervisor = Supervisor(farm.home / "crew")
        self._thread = threading.Thread(target=self._supervisor.run, daemon=True)

    def start(self) -> None:
        self._supervisor.start(*self._processes)
        for child in self._supervisor._children():
            child.backoff.limit = 0.5  # they are killed often, and nothing is wrong with them
        self._thread.start()
        self.wait_live()

    def wait_live(self) -> None:
        """Wait until every worker's present process takes jobs."""
        with self.farm.database() as db:
            eventually(lambda: set(self.names) <= self._live(db), within=180)

    def find(self, name: str) -> psutil.Process:
        """The process of a worker, or of the first ``standby``."""
        for child in psutil.Process(os.getpid()).children():
            with contextlib.suppress(psutil.Error, IndexError):
                module, told = child.cmdline()[2], child.environ()
                if told.get("FARM_HOME") != str(self.farm.home):
                    continue
                if name == ("standby" if module == _DISPATCHER else told["FARM_WORKER_NAME"]):
                    return child
        raise LookupError(name)

    def stop(self) -> None:
        self._supervisor.request_stop()
        if self._thread.ident:
            self._thread.join()
        self._supervisor.stop()

    def _live(self, db: Database) -> set[str]:
        rows = db.all(
            """SELECT worker, pid FROM sessions
               WHERE ended_at IS NULL AND state = 'live' AND stats ->> 'refuses' IS NULL"""
        )
        return {row["worker"] for row in rows if psutil.pid_exists(row["pid"])}

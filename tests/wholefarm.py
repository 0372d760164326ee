"""A whole farm for tests: ``farm up`` in a folder of its own, whose processes can be killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil

from farm.client import Farm
from farm.db.database import Database
from farm.embedded import home as homes
from farm.embedded import sockets
from tests.conftest import eventually

MODULES = {
    "worker": "farm.worker",
    "dispatcher": "farm.dispatch",
    "api": "farm.api",
    "postgres": "farm.embedded.postgres",
    "valkey": "farm.embedded.valkey",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class WholeFarm:
    """``farm up`` with one CPU worker; ``url`` and ``client`` once it is started."""

    def __init__(self, home: Path, *, workers: str = "1", **environment: str) -> None:
        self.home = home
        self.port = free_port()
        self.workers = workers
        self.environment = {
            **{name: value for name, value in os.environ.items() if name[:5] != "FARM_"},
            "FARM_LEASE_SECONDS": "5",
            "FARM_SCAN_SECONDS": "0.5",
            **environment,
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "farm.cli.main", *arguments]

    def run(self, *arguments: str, within: float = 120) -> subprocess.CompletedProcess[str]:
        """Run ``farm ...`` against this farm."""
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment, "FARM_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    def start(self) -> None:
        options = ["--home", str(self.home), "--port", str(self.port), "--workers", self.workers]
        self.log = self.home.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            self.command("up", *options), env=self.environment, stdout=self.log, stderr=self.log
        )
        try:
            eventually(self._ready, within=120)
        except BaseException:
            self.process.kill()  # its processes end when they miss it
            self.process.wait()
            raise
        self.url = homes.announced(self.home)[0]  # type: ignore[index]
        self.client = Farm(self.url)
        self.tree = psutil.Process(self.process.pid).children(recursive=True)

    def _ready(self) -> bool:
        assert self.process.poll() is None, Path(self.log.name).read_text()
        return homes.announced(self.home) is not None

    def answers(self) -> bool:
        """Whether the API serves, and Postgres behind it."""
        return homes.answers(f"{self.url}/readyz")

    def find(self, name: str) -> psutil.Process:
        """The process called ``name`` in MODULES; a server rather than its guard."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if child.cmdline()[1:3] == ["-m", MODULES[name]]:
                    servers = child.children() if name in ("postgres", "valkey") else []
                    return servers[0] if servers else child
            except (psutil.NoSuchProcess, IndexError):
                continue
        raise LookupError(name)

    def kill(self, name: str, sig: signal.Signals = signal.SIGKILL) -> None:
        victim = self.find(name)
        victim.send_signal(sig)
        if sig is signal.SIGKILL:
            eventually(lambda: not victim.is_running() or victim.status() == "zombie")

    def everything(self) -> list[psutil.Process]:
        """Every process this farm has, wherever it went."""
        return [
            process
            for process in psutil.process_iter(["cmdline", "environ"])
            if str(self.home) in " ".join(process.info["cmdline"] or [])
            or (process.info["environ"] or {}).get("FARM_HOME") == str(self.home)
        ]

    def database(self) -> Database:
        return Database(sockets.urls(self.home)[0])

    def stop(self) -> int:
        """Ctrl-C; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(timeout=60)
        self.log.close()
        self.client.close()
        return status

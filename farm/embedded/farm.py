"""The one-machine farm: every process it needs, in one folder, under one supervisor."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx

from farm.embedded import guard, home, port, postgres, sockets, valkey
from farm.errors import InvalidInput, SetupError
from farm.settings import Settings, address
from farm.supervisor import Process, Supervisor
from farm.worker import launcher
from farm.worker.launcher import Device

_PATIENCE = 180.0
_DRAIN = 3.0

Say = Callable[[str], object]


def up(settings: Settings, *, workers: str = "auto", say: Say) -> None:
    """Run a farm in ``settings.home`` until Ctrl-C or SIGTERM, or say where it runs already.

    Args:
        settings: ``host`` and ``port`` are the API's; ``database_url`` and ``broker_url``, where
            they are set, are used in place of the embedded servers.
        workers: ``auto``, one a GPU or one on the CPU; ``cpu``; or how many, from 0.
        say: called with what people should read.
    Raises:
        InvalidInput, SetupError: it cannot run like this.
    """
    devices = choose_devices(workers)
    if devices and importlib.util.find_spec("torch") is None:
        raise SetupError(
            "Workers need PyTorch, which is not installed.",
            remedy="Install it with `pip install 'farm[worker]'` (from a checkout: "
            "`pip install '.[worker]'`), or start with --workers 0.",
        )
    home.prepare(settings.home)
    held = _enter(settings.home, say)
    if held is None:
        return
    try:
        port.check(settings.host, settings.port)
        _Farm(settings, devices, held).run(say)
    finally:
        os.close(held)


def choose_devices(workers: str) -> list[Device]:
    """What the workers will hold; see :func:`up`."""
    if workers in ("auto", "cpu"):
        return launcher.discover(workers)
    if not workers.isdecimal():
        raise InvalidInput(
            f"workers: {workers!r} is not a number of workers.",
            field="workers",
            value=workers,
            remedy="Use auto, cpu, 0, or how many.",
        )
    count = int(workers)
    found = launcher.discover("auto") if count else []
    if found and found[0].uuid == "cpu":
        found = [launcher.cpu(index) for index in range(os.cpu_count() or 1)]
    if count > len(found):
        raise InvalidInput(
            f"workers: {count} are too many: this machine has {len(found)} GPUs or CPU cores.",
            field="workers",
            value=workers,
            remedy="Use auto, or at most so many.",
        )
    return found[:count]


def _enter(folder: Path, say: Say) -> int | None:
    """Lock the folder; None, after saying so, when the farm in it answers."""
    deadline = time.monotonic() + 30
    while (held := home.lock(folder)) is None:
        if url := home.running(folder):
            pid = (home.announced(folder) or (url, 0))[1]
            say(f"Farm is already running: {url} (process {pid}, data in {folder})")
            return None
        if time.monotonic() > deadline:
            raise SetupError(
                f"Another farm holds {folder} and does not answer.",
                field="FARM_HOME",
                value=str(folder),
                remedy=f"Look into {folder / 'logs'}, or set FARM_HOME to another folder.",
            )
        time.sleep(0.2)
    return held


class _Farm:
    """One run, from the servers to the last worker and back."""

    def __init__(self, settings: Settings, devices: list[Device], held: int) -> None:
        self._settings = settings
        self._home = settings.home
        self._devices = devices
        self._url = address(settings.host, settings.port)
        self._local = port.is_loopback(settings.host)
        database, broker = sockets.urls(settings.home)
        self._database_url = settings.database_url or database
        self._broker_url = settings.broker_url or broker
        self._supervisor = Supervisor(settings.home / "logs", held=held)

    def run(self, say: Say) -> None:
        home.withdraw(self._home)
        say(f"Starting Farm in {self._home}")
        with self._supervisor.signals():
            try:
                if self._start():
                    home.announce(self._home, self._url)
                    self._greet(say)
                    self._supervisor.run()
            finally:
                home.withdraw(self._home)
                self._supervisor.stop()
                self._end_orphans()

    def _start(self) -> bool:
        """Start everything; False if a stop was requested meanwhile."""
        self._supervisor.start(*self._servers())
        # Imported while the servers start: it takes as long as they do.
        from farm.db import migrate, sessions, users
        from farm.db.database import Database

        if not self._supervisor.wait_ready(_PATIENCE):
            return False
        migrate.upgrade(self._database_url)
        with Database(self._database_url, max_size=1, name="farm up") as db:
            earlier = {session.id for session in sessions.live(db)}
            if not self._local:
                home.keep_key(self._home, lambda: users.create_key(db, users.LOCAL, admin=True))
        self._supervisor.start(*self._processes())
        return self._supervisor.wait_ready(_PATIENCE, until=lambda: self._has_worker(earlier))

    def _servers(self) -> list[Process]:
        servers = []
        if self._settings.database_url is None:
            servers.append(self._server("postgres", lambda: postgres.ready(self._home)))
        if self._settings.broker_url is None:
            servers.append(self._server("valkey", lambda: valkey.ready(self._home)))
        return servers

    def _server(self, name: str, ready: Callable[[], bool]) -> Process:
        argv = [sys.executable, "-m", f"farm.embedded.{name}", str(self._home)]
        return Process(name, argv, ready=ready)

    def _processes(self) -> list[Process]:
        env = self._environment()
        share = {
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(1, len(self._devices))))
        }
        shared = share if len(self._devices) > 1 and self._devices[0].uuid == "cpu" else {}
        return [
            Process(
                "api",
                [sys.executable, "-m", "farm.api"],
                env,
                ready=lambda: home.answers(f"{self._url}/readyz"),
            ),
            Process("dispatcher", [sys.executable, "-m", "farm.dispatch"], env),
            # A worker that overstays ends itself 10 s after its drain.
            *(
                launcher.process(device, grace=self._drain + 12, env={**env, **shared})
                for device in self._devices
            ),
        ]

    @property
    def _drain(self) -> float:
        told = "drain_seconds" in self._settings.model_fields_set
        return self._settings.drain_seconds if told else _DRAIN

    def _environment(self) -> dict[str, str]:
        settings = self._settings
        return {
            "FARM_HOME": str(self._home),
            "FARM_DATABASE_URL": self._database_url,
            "FARM_BROKER_URL": self._broker_url,
            "FARM_STORAGE_URL": settings.storage_url,
            "FARM_MODELS": os.pathsep.join(map(str, settings.models)),
            "FARM_HOST": settings.host,
            "FARM_PORT": str(settings.port),
            "FARM_LOCAL": str(int(self._local)),
            "FARM_DRAIN_SECONDS": str(self._drain),
        }

    def _has_worker(self, earlier: set[str]) -> bool:
        """Whether a worker is live that is not left from a farm that was killed."""
        if not self._devices:
            return True
        with suppress(httpx.HTTPError, ValueError, KeyError):
            found = home.ask(f"{self._url}/v1/workers").json()["workers"]
            return any(each["state"] == "live" and each["session"] not in earlier for each in found)
        return False

    def _greet(self, say: Say) -> None:
        say(f"Farm is ready: {self._url}")
        names = ", ".join(device.name for device in self._devices) or "none"
        say(f"Workers: {names}. Data and logs: {self._home}. Ctrl-C stops it.")
        if not self._local:
            say(f"Others need the key in {home.key_file(self._home)}: set FARM_API_KEY to it.")

    def _end_orphans(self) -> None:
        """End servers whose guard was killed so late that nothing took them over."""
        for server in (postgres, valkey):
            if found := server.running(self._home):
                guard.end(found, server.STOP)

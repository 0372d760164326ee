"""A one-machine farm in the background: started for a client, stopped by anyone."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from farm.embedded import home
from farm.errors import SetupError
from farm.settings import Settings

_PATIENCE = 240.0


def start(settings: Settings, *, workers: str = "auto") -> str:
    """Start ``farm up`` detached from this terminal, or find the farm that runs already.

    Returns:
        its URL.
    Raises:
        SetupError: it did not start; says why.
    """
    home.prepare(settings.home)
    if url := home.running(settings.home):
        return url
    log = settings.home / "logs" / "farm.log"
    log.parent.mkdir(exist_ok=True)
    options = ["--home", str(settings.home), "--host", settings.host, "--port", str(settings.port)]
    with log.open("wb") as output:
        farm = subprocess.Popen(
            [sys.executable, "-m", "farm.cli.main", "up", *options, "--workers", workers],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + _PATIENCE
    while not (url := home.running(settings.home)):
        if farm.poll() or time.monotonic() > deadline:
            farm.terminate()
            raise SetupError(
                f"The farm did not start:\n{log.read_text(errors='replace').strip()}\n",
                remedy=f"The logs are in {log.parent}.",
            )
        time.sleep(0.1)
    return url


def stop(folder: Path, *, timeout: float = 60.0) -> bool:
    """Stop the farm of this folder as Ctrl-C would, and wait until it is gone.

    Returns:
        False if none ran.
    Raises:
        SetupError: it is still there after ``timeout`` seconds.
    """
    found = home.announced(folder)
    if not found or not home.taken(folder):
        return False
    try:
        farm = psutil.Process(found[1])
        farm.terminate()
        farm.wait(timeout)
    except psutil.NoSuchProcess:
        return False
    except psutil.TimeoutExpired:
        raise SetupError(
            f"Farm, process {found[1]}, does not end.",
            remedy=f"Look into {folder / 'logs'}; `kill -9 {found[1]}` ends it and all of its own.",
        ) from None
    return True

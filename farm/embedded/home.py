"""The folder of a one-machine farm: fit to use, locked by one farm, known to its clients."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from farm.errors import SetupError

LITTLE = 2 << 30
"""Bytes of free space below which people are warned."""

_log = logging.getLogger(__name__)


def prepare(home: Path) -> None:
    """Make the folder and prove that it can be written to.

    Raises:
        SetupError: it cannot; says why.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as probe:
            probe.write(b"farm")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise SetupError(
            f"The data folder {home} cannot be used: {error.strerror}.",
            field="FARM_HOME",
            value=str(home),
            remedy="Free space there, correct its owner, or set FARM_HOME to another folder.",
        ) from None
    free = shutil.disk_usage(home).free
    if free < LITTLE:
        _log.warning("only %.1f GB are free in %s", free / 1e9, home)


def lock(home: Path) -> int | None:
    """Take the folder for one farm; None when another has it.

    Returns:
        a file descriptor that keeps it. The farm's processes inherit it, so that the folder
        of a killed farm stays taken until the last of them is gone.

    Raises:
        SetupError: the folder is another user's.
    """
    try:
        file = os.open(home / "farm.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except PermissionError:
        raise SetupError(
            f"The farm in {home} belongs to another user.",
            field="FARM_HOME",
            value=str(home),
            remedy="Run it as that user, or set FARM_HOME to another folder.",
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def announce(home: Path, url: str) -> None:
    """Tell clients where the farm is: ``farm.json``, ``{"url": ..., "pid": ...}``."""
    new = home / ".farm.json.new"
    new.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    new.replace(home / "farm.json")


def withdraw(home: Path) -> None:
    """Undo :func:`announce`."""
    (home / "farm.json").unlink(missing_ok=True)


def announced(home: Path) -> tuple[str, int] | None:
    """URL and process number in ``farm.json``, of a farm that has perhaps been killed since."""
    try:
        told = json.loads((home / "farm.json").read_text())
        return str(told["url"]), int(told["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def running(home: Path) -> str | None:
    """The URL of the farm that runs in this folder and answers."""
    found = announced(home)
    return found[0] if found and taken(home) and answers(f"{found[0]}/healthz") else None


def ask(url: str) -> httpx.Response:
    """GET from this machine's own farm."""
    # Plain HTTP: certificates would take longer to read than the answer.
    return httpx.get(url, timeout=2, trust_env=False, verify=False)


def answers(url: str) -> bool:
    """Whether a GET succeeds."""
    try:
        return ask(url).is_success
    except httpx.HTTPError:
        return False


def key_file(home: Path) -> Path:
    """Where the API key of this farm's owner is kept."""
    return home / "api_key"


def keep_key(home: Path, create: Callable[[], str]) -> None:
    """Create the owner's API key at the first start that needs one; only its user may read it."""
    file = key_file(home)
    if not file.exists():
        new = file.with_name(".api_key.new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(f"{create()}\n")
        new.replace(file)


def taken(home: Path) -> bool:
    """Whether a farm holds the folder's lock."""
    with contextlib.suppress(OSError):
        file = os.open(home / "farm.lock", os.O_RDONLY)
        try:
            # Shared, so that two who look never see each other.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
    return False

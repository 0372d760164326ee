"""What a user without rights sees, in tests that run as root."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """In the block this thread alone reads files as a user who owns none. Who is not root is that
    already, as far as files without permissions go."""
    if os.geteuid() != 0:
        yield
        return
    setfsuid = ctypes.CDLL(None).setfsuid
    setfsuid(NOBODY)
    try:
        yield
    finally:
        setfsuid(0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that others may look into; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory(prefix="farm-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder

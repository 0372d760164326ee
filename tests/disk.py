"""A file system that can be full at will: a tmpfs, which may become smaller while it is used."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import eventually

_SIZE = 256 << 20


class Disk:
    """A file system of its own at ``folder``, once it is mounted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def mount(self) -> bool:
        """Whether that was allowed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._run("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none")

    def unmount(self) -> None:
        self._run("umount", "-l")

    @contextmanager
    def full(self) -> Iterator[None]:
        """Meanwhile nothing more fits than what is there."""
        # In vain where more was written since it was asked how much there is.
        eventually(lambda: self._resize(self._used()), every=0)
        try:
            yield
        finally:
            assert self._resize(_SIZE)

    def _used(self) -> int:
        found = os.statvfs(self._folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _resize(self, size: int) -> bool:
        return self._run("mount", "-o", f"remount,size={size}")

    def _run(self, *command: str) -> bool:
        done = subprocess.run([*command, str(self._folder)], capture_output=True, check=False)
        return done.returncode == 0

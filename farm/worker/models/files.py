"""What lies in model folders, opened so that nobody waits for it, and named so that all can."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO
from unicodedata import category


def open_file(path: Path) -> BinaryIO:
    """The file, open for reading.

    Raises:
        OSError: it cannot be read, or is no file: to open a pipe waits for one who writes into it.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file", str(path))
    return os.fdopen(handle, "rb")


def legible(text: str) -> str:
    """The text with marks for bytes that are not UTF-8 and for control characters: it could be
    neither stored nor sent, nor printed on a terminal without harm."""
    return "".join("\ufffd" if category(letter) in ("Cc", "Cs") else letter for letter in text)

"""Tensors out of pickle files, with nothing in these files being run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from farm.errors import CheckpointError
from farm.worker.models.files import open_file


def read_pickled(
    path: Path, *, max_bytes: int, refused: Callable[[Path, str, str], CheckpointError]
) -> Any:
    """What a pickle holds, on the CPU, if that is nothing but tensors and plain containers.

    It goes through torch's restricted unpickler, which makes these, calls nothing else, and
    refuses all others before anything has run.

    Args:
        max_bytes: of the file, and of what it unpacks to.
        refused: makes the error from the path, what is wrong with it, and a remedy.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(path) as file:
        if _unpacked(file) > max_bytes:
            raise refused(path, f"unpacks to more than {max_bytes >> 20} MB", "Look what it is.")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken or hostile pickle makes of the unpickler
            raise refused(
                path,
                "cannot be read as tensors alone",
                "Convert it to .safetensors where you trust it.",
            ) from error


def _unpacked(file: BinaryIO) -> int:
    """Bytes that it says it holds; the file stands at its start again."""
    size = file.seek(0, 2)
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
        except (zipfile.BadZipFile, ValueError):
            pass  # torch tells what is wrong with it
    file.seek(0)
    return size

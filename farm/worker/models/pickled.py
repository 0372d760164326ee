"""Tensors out of pickle files, with nothing in these files being run."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from farm.errors import CheckpointError
from farm.worker.models.files import open_file

_ZIPPED = b"PK"


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
        try:
            if _unpacked(file) <= max_bytes:
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a broken or hostile file makes of who reads it
            raise refused(
                path,
                "cannot be read as tensors alone",
                "Convert it to .safetensors where you trust it.",
            ) from error
    raise refused(path, f"unpacks to more than {max_bytes >> 20} MB", "Look what it is.")


def _unpacked(file: BinaryIO) -> int:
    """Bytes that it says it holds; the file stands at its start again.

    Raises:
        BadZipFile: nobody can say. torch might still unpack what Python cannot list.
    """
    size = file.seek(0, 2)
    file.seek(0)
    if file.read(len(_ZIPPED)) == _ZIPPED or zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    file.seek(0)
    return size

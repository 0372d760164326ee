"""What a model file hashes to, without getting in anybody's way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from farm.worker.models.catalogue import Identity
from farm.worker.models.files import open_file
from farm.worker.models.header import damaged, file_identity

BLOCK = 4 * 2**20
SHORT = 10
"""Digits of a checkpoint's hash that webui shows."""
SHORT_WEIGHTS = 12
"""Digits of a LoRA's hash that webui and Civitai show."""


class Hashes(NamedTuple):
    """Both in hexadecimal.

    Attributes:
        sha256: of the whole file, as webui shows it for checkpoints.
        weights_sha256: of what follows the safetensors header, as kohya's trainer counts it;
            None unless asked for.
    """

    sha256: str
    weights_sha256: str | None


def hash_file(
    path: Path,
    identity: Identity,
    *,
    weights_too: bool = False,
    between: Callable[[], None] = lambda: None,
) -> Hashes:
    """Read the file once and hash it.

    Args:
        identity: which file is meant, as :class:`AssetFile` has it.
        between: called before each block of 4 MiB; it may wait, or raise to give up.

    Raises:
        CheckpointError: the file is another one by now, or cannot be read.
    """
    whole, weights = hashlib.sha256(), hashlib.sha256() if weights_too else None
    try:
        with open_file(path) as file:
            start = _weights_start(file) if weights_too else 0
            position = 0
            while True:
                between()
                block = file.read(BLOCK)
                if not block:
                    break
                whole.update(block)
                if weights is not None:
                    weights.update(block[max(0, start - position) :])
                position += len(block)
            if file_identity(os.fstat(file.fileno())) != identity:
                raise damaged(path, "was changed while it was hashed")
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}", "Check its disk.") from error
    return Hashes(whole.hexdigest(), weights.hexdigest() if weights is not None else None)


def _weights_start(file: BinaryIO) -> int:
    """Where a safetensors file's weights begin; the file stands at its start again."""
    start = 8 + int.from_bytes(file.read(8), "little")
    file.seek(0)
    return start

"""The index at the front of a safetensors file: what is in it, without reading the weights.

Format: 8 bytes of little-endian length, that many bytes of JSON, then the tensors' bytes
(https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from farm.errors import CheckpointError
from farm.worker.models.files import legible, open_file
from farm.worker.models.kinds import PICKLED

MAX_HEADER = 100_000_000
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: its safetensors dtype (``F16``), shape, and bytes ``start`` to ``end``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """The index of one file, as it was when read.

    Attributes:
        tensors: entries by name.
        metadata: the free text pairs that its maker put in.
        bytes: size of the file.
        identity: (size, mtime in ns, inode), equal as long as it is the same file.
    """

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    bytes: int
    identity: tuple[int, int, int]


def file_identity(status: os.stat_result) -> tuple[int, int, int]:
    """What tells one file from its replacement: (size, mtime in ns, inode)."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def read_header(path: Path) -> Header:
    """Read and check the index of ``path``; no weight is touched.

    Raises:
        CheckpointError: missing, unreadable, empty, a pickle, not safetensors, cut short, or its
            tensors overlap or leave holes.
    """
    refuse_pickle(path)
    try:
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            index, data_start = _read_index(path, file, status.st_size)
    except PermissionError as error:
        remedy = "Let the user that the worker runs as read it."
        raise damaged(path, "cannot be read: permission denied", remedy) from error
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else error.strerror
        raise damaged(path, f"cannot be read: {reason}", "Check the path.") from error
    metadata = index.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise damaged(path, "has metadata that is not a table")
    tensors = {name: _entry(path, name, raw, data_start) for name, raw in index.items()}
    _check_extent(path, tensors, data_start, status.st_size)
    return Header(
        path=path,
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType({str(key): str(value) for key, value in metadata.items()}),
        bytes=status.st_size,
        identity=file_identity(status),
    )


def refuse_pickle(path: Path) -> None:
    """Raise for file types that are pickles: merely opening one can run any code."""
    if path.suffix.lower() in PICKLED:
        raise damaged(
            path,
            f"is a {path.suffix} file, a pickle, which can run code when it is loaded",
            "Convert it to .safetensors on a machine you can afford to lose.",
        )


def damaged(path: Path, what: str, remedy: str = "Copy or download it again.") -> CheckpointError:
    """The error ``<file name> <what>``."""
    return CheckpointError(
        f"{legible(path.name)} {what}.", field="checkpoint", value=str(path), remedy=remedy
    )


def _read_index(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    if size == 0:
        raise damaged(path, "is empty")
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= MAX_HEADER:
        what = f": its index would be {length} bytes long" if len(prefix) == 8 else ""
        raise damaged(path, f"is not a safetensors file{what}", "Give a .safetensors file.")
    if 8 + length > size:
        raise damaged(path, f"is cut short: {size} bytes, and its index alone is {8 + length}")
    try:
        index = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise damaged(
            path, "is not a safetensors file: its index is not JSON", "Give a .safetensors file."
        ) from error
    if not isinstance(index, dict):
        raise damaged(path, "is not a safetensors file: its index is not a table")
    return index, 8 + length


def _entry(path: Path, name: str, raw: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = str(raw["dtype"]), tuple(raw["shape"]), raw["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"has a broken index at {name!r}") from error
    if dtype not in ITEM_BYTES:
        raise damaged(
            path,
            f"stores {name!r} as {dtype}, which Farm does not read",
            "Use a version of it in float32, float16, bfloat16 or float8.",
        )
    if (
        not all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        or end - begin != math.prod(shape) * ITEM_BYTES[dtype]
    ):
        raise damaged(path, f"has a broken index at {name!r}")
    return TensorEntry(dtype, shape, data_start + begin, data_start + end)


def _check_extent(
    path: Path, tensors: Mapping[str, TensorEntry], data_start: int, size: int
) -> None:
    """The tensors must fill the file, one after the other."""
    if not tensors:
        raise damaged(path, "holds no tensors")
    needed = max(entry.end for entry in tensors.values())
    if needed > size:
        raise damaged(path, f"is cut short: {size} of {needed} bytes")
    reached = data_start
    for name, entry in sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].end)):
        if entry.start != reached:
            how = "overlaps the tensor before it" if entry.start < reached else "comes after a hole"
            raise damaged(path, f"has a broken index: {name!r} {how}")
        reached = entry.end
    if reached != size:
        raise damaged(path, f"has {size - reached} bytes behind its last tensor")

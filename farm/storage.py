"""The image store: a folder, or anything fsspec reaches (``s3://bucket/prefix``)."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from farm.errors import FarmError, InvalidInput, NotFound, SetupError, Unavailable

_PARTIAL = ".partial"
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"  # no leading dot: no "..", nothing hidden
_PATH = re.compile(rf"{_NAME}(/{_NAME})*")
_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space or raise the quota"),
    errno.EROFS: ("it is on a read-only disk", "Mount it writable"),
    errno.EACCES: ("this user may not write there", "Correct the folder's owner or permissions"),
    errno.EPERM: ("this user may not write there", "Correct the folder's owner or permissions"),
}


def image_path(batch: int, ord: int, attempt: int, suffix: str = ".png") -> str:
    """Where an attempt's image is kept: ``batches/000012/000003-1.png``.

    Unique to the attempt, so that a late attempt can never overwrite the accepted one.
    """
    return f"batches/{batch:06d}/{ord:06d}-{attempt}{suffix}"


def trace_path(id: str) -> str:
    """Where a worker's timeline is kept."""
    return f"traces/{id}.json"


class ImageStore:
    """Whole files under relative paths such as those of :func:`image_path`.

    Every method raises InvalidInput for a path that could leave the store, NotFound for one
    that is not there, and Unavailable when the disk or service fails.
    """

    def __init__(self, url: str) -> None:
        try:
            self._files, root = fsspec.core.url_to_fs(str(url))
        except (ValueError, ImportError) as error:
            raise SetupError(
                f"Images cannot be stored at {url}: {error}.",
                field="FARM_STORAGE_URL",
                value=str(url),
                remedy="Set FARM_STORAGE_URL to a folder, or install what its protocol needs.",
            ) from None
        self._root = root.rstrip("/")
        self._on_disk = isinstance(self._files, LocalFileSystem)

    def put(self, path: str, data: bytes) -> None:
        """Store a file whole: it is visible, and survives a power cut, or is not there at all."""
        whole = self._inside(path)
        with self._reaching(path):
            if self._on_disk:
                self._put_on_disk(Path(whole), data)
                return
            try:
                self._files.pipe_file(whole, data)
            except FileNotFoundError:  # a store with real folders, sftp for one
                self._files.makedirs(whole.rpartition("/")[0], exist_ok=True)
                self._files.pipe_file(whole, data)

    def probe(self, size: int) -> None:
        """Write and remove a file of ``size`` bytes, to find out whether an image would fit."""
        whole = f"{self._root}/{_PARTIAL}/{uuid4().hex}"
        with self._reaching("A new file"):
            if self._on_disk:
                self._write_partial(bytes(size)).unlink()
                return
            self._files.pipe_file(whole, bytes(size))
            self._files.rm_file(whole)

    def get(self, path: str) -> bytes:
        """The file's content."""
        with self._reaching(path):
            return cast(bytes, self._files.cat_file(self._inside(path)))

    def open(self, path: str) -> BinaryIO:
        """The file, open for reading."""
        with self._reaching(path):
            return cast(BinaryIO, self._files.open(self._inside(path), "rb"))

    def size(self, path: str) -> int:
        """Bytes."""
        with self._reaching(path):
            return cast(int, self._files.info(self._inside(path))["size"])

    def delete(self, path: str) -> None:
        """Remove a file; one that is gone already is fine."""
        whole = self._inside(path)
        with self._reaching(path):
            try:
                self._files.rm_file(whole)
            except FileNotFoundError:
                return

    def paths(self, prefix: str = "") -> Iterator[str]:
        """The path of every stored file in the folder ``prefix``, in order."""
        whole = self._inside(prefix) if prefix else self._root
        with self._reaching(prefix or "the store"):
            found = self._files.find(whole)
        for name in sorted(found):
            path = name[len(self._root) :].lstrip("/")
            if not path.startswith(f"{_PARTIAL}/"):
                yield path

    def remove_partial(self, older_than: float = 3600.0) -> int:
        """Remove what writers that died left half written.

        Args:
            older_than: seconds since its last byte; younger files may still be being written.
        Returns:
            how many were removed.
        """
        folder = Path(self._root, _PARTIAL)
        if not self._on_disk or not folder.is_dir():
            return 0
        before = time.time() - older_than
        stale = [file for file in folder.iterdir() if file.stat().st_mtime < before]
        for file in stale:
            file.unlink(missing_ok=True)
        return len(stale)

    def _inside(self, path: str) -> str:
        if not _PATH.fullmatch(path):
            raise InvalidInput(
                f"{path!r} is not a path in the image store.",
                field="path",
                value=path,
                remedy="Use letters, digits, '.', '_', '-' in names parted by '/'.",
            )
        return f"{self._root}/{path}"

    def _put_on_disk(self, path: Path, data: bytes) -> None:
        partial = self._write_partial(data)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write_partial(self, data: bytes) -> Path:
        partial = Path(self._root, _PARTIAL, uuid4().hex)
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                # An image that Postgres knows must outlive a power cut: 1.6 ms for both syncs.
                os.fsync(file.fileno())
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return partial

    @contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        try:
            yield
        except FarmError:
            raise
        except FileNotFoundError:
            raise NotFound(f"There is no stored file {path}.", field="path", value=path) from None
        except Exception as error:  # each fsspec service raises its own kinds
            code = error.errno if isinstance(error, OSError) else None
            why, remedy = _REASONS.get(code or 0, (str(error), "Check the store"))
            raise Unavailable(
                f"{path} could not be reached in {self._root}: {why}.",
                field="FARM_STORAGE_URL",
                value=self._root,
                remedy=f"{remedy}, or set FARM_STORAGE_URL to another place.",
            ) from error

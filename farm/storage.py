"""The image store: a folder, or anything fsspec reaches (``s3://bucket/prefix``)."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from farm.errors import FarmError, InvalidInput, NotFound, SetupError, Unavailable

_PARTIAL = ".partial"
_MARK = ".farm-store"
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"  # no leading dot: no "..", nothing hidden
_PATH = re.compile(rf"{_NAME}(/{_NAME})*")
_ATTEMPT = re.compile(r"([0-9]{6,18})-([0-9]{1,9})\.[a-z.]+")
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
    return f"{batch_folder(batch)}/{ord:06d}-{attempt}{suffix}"


def batch_folder(batch: int) -> str:
    """Where the images of a batch are kept."""
    return f"batches/{batch:06d}"


def attempt_of(path: str) -> tuple[int, int] | None:
    """Ord and attempt of a file by :func:`image_path`; None for any other."""
    found = _ATTEMPT.fullmatch(path.rpartition("/")[2])
    return (int(found[1]), int(found[2])) if found else None


def trace_path(id: str) -> str:
    """Where a worker's timeline is kept."""
    return f"traces/{id}.json"


def report_path(id: str) -> str:
    """Where a worker's answer to an order is kept."""
    return f"reports/{id}.json"


def snapshot_path(id: str) -> str:
    """Where a snapshot of a card's memory is kept."""
    return f"memory/{id}.pickle"


class ImageStore:
    """Whole files under relative paths such as those of :func:`image_path`.

    Args:
        id: what is written in its root, see :meth:`check`; None for a place that is anybody's. A
            folder is not written to where that is not so.

    Every method raises InvalidInput for a path that could leave the store, NotFound for one
    that is not there, and Unavailable when the disk or service fails.
    """

    def __init__(self, url: str, *, id: str | None = None) -> None:
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
        self._id = id

    def mark(self, id: str) -> str:
        """Write into the root whose store this is, unless that stands there already; what does."""
        with self._reaching(_MARK, writing=True):
            with suppress(FileNotFoundError):
                return self._mark()
            if self._on_disk:
                partial = self._write_partial(id.encode())
                partial.replace(Path(self._root, _MARK))
            else:
                self._files.pipe_file(f"{self._root}/{_MARK}", id.encode())
        return id

    def check(self, id: str | None = None) -> None:
        """Raise Unavailable unless the root says that this is the store called ``id``, or else what
        it was made for: a folder that is not mounted is empty, and another one's is not ours."""
        id = id or self._id
        if id is None:
            return
        with self._reaching(_MARK, writing=True):
            found = None
            with suppress(FileNotFoundError):
                found = self._mark()
        if found != id:
            mark = f"{self._root}/{_MARK}"
            raise Unavailable(
                f"{self._root} is not where this farm keeps its images: {mark} "
                f"{'is not there' if found is None else 'says ' + found[:40]}.",
                field="FARM_STORAGE_URL",
                value=self._root,
                remedy=f"Mount it, or correct FARM_STORAGE_URL. If it was emptied or moved on "
                f"purpose, write {id} into {mark}.",
            )

    def _mark(self) -> str:
        return cast(bytes, self._files.cat_file(f"{self._root}/{_MARK}")).decode().strip()

    def put(self, path: str, data: bytes) -> None:
        """Store a file whole: it is visible, and survives a power cut, or is not there at all."""
        whole = self._inside(path)
        if self._on_disk:
            self.check()
        with self._reaching(path, writing=True):
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
        self.check()
        with self._reaching("A new file", writing=True):
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
            if not path.startswith(f"{_PARTIAL}/") and path != _MARK:
                yield path

    def listing(self, folder: str) -> Iterator[tuple[str, float]]:
        """Path and time of the last change, in seconds since 1970, of each file right in a folder.

        Files on a disk come one by one, however many there are. One without a time has infinity.
        """
        whole = self._inside(folder)
        with self._reaching(folder):
            if self._on_disk:
                if Path(whole).is_dir():
                    with os.scandir(whole) as found:
                        for entry in found:
                            if entry.is_file() and (changed := _last_change(entry)):
                                yield f"{folder}/{entry.name}", changed
                return
            try:
                entries = self._files.ls(whole, detail=True)
            except FileNotFoundError:
                return
        for entry in entries:
            if entry["type"] == "file":
                yield f"{folder}/{entry['name'].rpartition('/')[2]}", _changed(entry)

    def remove_folder(self, folder: str) -> None:
        """Remove an empty folder, where there are such; one that is not empty stays."""
        if self._on_disk:
            with suppress(OSError):
                Path(self._inside(folder)).rmdir()

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
        before, removed = time.time() - older_than, 0
        for file in folder.iterdir():
            with suppress(FileNotFoundError):  # its writer has just finished it
                if file.stat().st_mtime < before:
                    file.unlink()
                    removed += 1
        return removed

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
    def _reaching(self, path: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except FarmError:
            raise
        except Exception as error:  # each fsspec service raises its own kinds
            if isinstance(error, FileNotFoundError) and not writing:
                told = f"There is no stored file {path}."
                raise NotFound(told, field="path", value=path) from None
            code = error.errno if isinstance(error, OSError) else None
            why, remedy = _REASONS.get(code or 0, (str(error), "Check the store"))
            raise Unavailable(
                f"{path} could not be reached in {self._root}: {why}.",
                field="FARM_STORAGE_URL",
                value=self._root,
                remedy=f"{remedy}, or set FARM_STORAGE_URL to another place.",
            ) from error


def _last_change(entry: os.DirEntry[str]) -> float | None:
    """None where somebody has just removed it."""
    with suppress(FileNotFoundError):
        return entry.stat().st_mtime
    return None


def _changed(entry: Mapping[str, Any]) -> float:
    # Each fsspec service has its own name for it.
    when = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
    if isinstance(when, datetime):
        return when.timestamp()
    return float(when) if isinstance(when, int | float) else inf

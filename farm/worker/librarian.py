"""The librarian: tells the farm what this host's model folders hold, and hashes it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from farm.db import assets
from farm.db.assets import Asset, Unhashed
from farm.db.database import Database
from farm.errors import CheckpointError, Unavailable
from farm.worker.models.catalogue import AssetFile, Identity
from farm.worker.models.files import legible
from farm.worker.models.hashes import hash_file
from farm.worker.models.kinds import LORA
from farm.worker.models.library import Library

_log = logging.getLogger(__name__)

_POLITE = 19


class Librarian:
    """Scans the folders now and then, and hashes files while nobody loads any.

    No image waits for it: a hash that is not known yet is left out. Files are hashed one at a
    time and by one worker of a host, in a thread of the lowest priority.

    Args:
        host: whose folders these are; workers on one host share what they find out.
        loading: whether a checkpoint is being read; hashing then leaves it the disk.
        every: seconds between scans.
        scanned: called after every scan, as what was in use when its file changed has stayed.
    """

    def __init__(
        self,
        db: Database,
        library: Library,
        *,
        host: str,
        loading: Callable[[], bool],
        scanned: Callable[[], None],
        every: float,
    ) -> None:
        self._db = db
        self._library = library
        self._host = host
        self._loading = loading
        self._scanned = scanned
        self._every = every
        self._stop = threading.Event()
        self._sha256: dict[str, str] = {}
        self._register()
        self._thread = threading.Thread(target=self._run, name="librarian", daemon=True)

    def start(self) -> None:
        """Begin to scan and hash."""
        self._thread.start()

    def stop(self) -> None:
        """End, in the middle of a hash too."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def sha256(self, kind: str, name: str) -> str | None:
        """The hash of an asset, or None while it is not known; of a LoRA, that of its weights."""
        try:
            return self._sha256.get(str(self._library.find(kind, name).path))
        except CheckpointError:
            return None

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _POLITE)
        while not self._stop.is_set():
            try:
                if not self._hash_one() and not self._stop.wait(self._every):
                    if self._library.scan():
                        self._register()
                    self._scanned()
                    self._sha256 = assets.hashes(self._db, self._host)
            except Unavailable as error:
                _log.warning("the library is not up to date: %s", error)
                self._stop.wait(self._every)
            except Exception:
                # Its end would leave new files unseen; no image depends on it.
                _log.exception("the library is not up to date")
                self._stop.wait(self._every)

    def _register(self) -> None:
        folders = [_plain(folder) for folder in self._library.folders]
        assets.register(self._db, self._host, map(_asset, self._library), folders=folders)
        self._sha256 = assets.hashes(self._db, self._host)

    def _hash_one(self) -> bool:
        """Hash one file; False if there is none to hash."""
        file = assets.take_unhashed(self._db, self._host)
        if file is None:
            return False
        try:
            found = hash_file(
                Path(file.path),
                _identity(file),
                weights_too=file.kind == LORA and file.path.endswith(".safetensors"),
                between=self._give_way,
            )
        except CheckpointError as error:
            _log.warning("not hashed: %s", error)
            return True
        assets.record_hashes(self._db, self._host, file, **found._asdict())
        self._sha256[file.path] = found.weights_sha256 or found.sha256
        return True

    def _give_way(self) -> None:
        while self._loading() and not self._stop.wait(0.2):
            pass
        if self._stop.is_set():
            raise CheckpointError("The worker is stopping.")


def _asset(file: AssetFile) -> Asset:
    return Asset(
        name=file.name,
        family=file.family,
        bytes=file.bytes,
        path=_plain(file.path),
        defaults=dict(file.defaults),
        error=legible(file.error) if file.error else None,
        kind=file.kind,
        dtype=file.dtype,
        # Makers put in what they like; Postgres takes no NUL and no half of a surrogate pair.
        metadata={legible(name): legible(text) for name, text in file.metadata.items()},
        identity=":".join(map(str, file.identity)) if file.identity else None,
    )


def _plain(path: Path) -> str:
    """The path; bytes of it that are not UTF-8 are spelt, so that no two become one."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _identity(file: Unhashed) -> Identity:
    size, mtime, inode = map(int, file.identity.split(":"))
    return size, mtime, inode

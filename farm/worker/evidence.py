"""Snapshots of a card's memory as it was when it ran out, kept for those who look for the cause."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from farm.errors import FarmError
from farm.storage import ImageStore, snapshot_path

if TYPE_CHECKING:
    from farm.worker.memory.snapshot import Snapshot, Snapshots

_log = logging.getLogger(__name__)


class Evidence:
    """Stores each snapshot once, by the first attempt that was there.

    Args:
        snapshots: of the worker's device.
    """

    def __init__(self, snapshots: Snapshots, store: ImageStore) -> None:
        self._snapshots = snapshots
        self._store = store
        self._lock = threading.Lock()
        self._kept: tuple[Snapshot, str] | None = None

    def since(self, began: float, attempt: str) -> str | None:
        """The path of a snapshot of memory that ran out since ``began``, on the monotonic clock.

        Args:
            attempt: as the engine calls it, such as ``12-3.1``.

        Returns:
            None where memory did not run out, or the store cannot be reached.
        """
        with self._lock:
            found = self._snapshots.exhausted
            if found is None or found.at < began:
                return None
            if self._kept and self._kept[0] is found:
                return self._kept[1]
            path = snapshot_path(attempt)
            try:
                self._store.put(path, found.content)
            except FarmError as error:
                _log.warning("a snapshot of the memory is lost: %s", error)
                return None
            self._kept = (found, path)
            return path

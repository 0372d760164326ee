"""The keeper: puts finished images into the store, and knows whether the store takes any."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from time import monotonic
from typing import Any

from farm.errors import FarmError, Unavailable
from farm.storage import ImageStore
from farm.worker import picture
from farm.worker.picture import Encoded

_log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds for which a finished image waits for the store, before another worker makes it anew."""

_PROBE = 2.0
_LITTLE = 1 << 20


class Keeper:
    """Stores images; holds what is finished while the store refuses, and tries it now and then.

    Attributes:
        refusal: why the store takes nothing now, or None. Who knows that begins no image.
    """

    def __init__(self, images: ImageStore, *, patience: float = PATIENCE) -> None:
        self.refusal: str | None = None
        self._images = images
        self._patience = patience
        self._lock = threading.Lock()
        self._again = threading.Event()
        self._leaving = threading.Event()
        self._size = _LITTLE

    def check(self) -> None:
        """Find out whether the store takes anything."""
        try:
            self._images.probe(self._size)
        except Unavailable as error:
            self._refused(error)

    def keep(self, encoded: Encoded, job: tuple[int, int, int]) -> dict[str, Any]:
        """Store an image: the row that names its files.

        Raises:
            Unavailable: the store has refused for too long, or the worker stops. Nothing is left.
        """
        until = monotonic() + self._patience
        while True:
            try:
                return picture.store(self._images, encoded, job)
            except Unavailable as error:
                # As much must fit before others are let try.
                self._size = max(self._size, 2 * len(encoded.data))
                self._refused(error)
                self._again.wait(until - monotonic())
                if self._leaving.is_set() or monotonic() > until:
                    self.drop(picture.paths(job, encoded.suffix))
                    raise

    def drop(self, paths: Mapping[str, Any]) -> None:
        """Delete the files that a row names and that do not count after all."""
        for path in (paths["path"], paths["thumb_path"]):
            try:
                self._images.delete(path)
            except FarmError as error:
                _log.warning("orphan %s stays behind: %s", path, error)

    def leave(self) -> None:
        """Hold nothing any more: what waits for the store is given up."""
        self._leaving.set()
        self._again.set()

    def _refused(self, error: Unavailable) -> None:
        with self._lock:
            if self.refusal is None:
                _log.error("the store refuses, so no image is begun: %s", error)
                self._again.clear()
                threading.Thread(target=self._probe, name="keeper", daemon=True).start()
            self.refusal = error.message

    def _probe(self) -> None:
        while not self._leaving.wait(_PROBE):
            try:
                self._images.probe(self._size)
            except Unavailable as error:
                self.refusal = error.message
                continue
            with self._lock:
                _log.info("the store takes images again")
                self.refusal = None
                self._again.set()
                return

"""What the engine has measured, on its way to Postgres and back from there in the next life."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from farm.db import measurements
from farm.db.database import Database
from farm.errors import Unavailable
from farm.spec.measurement import Call, Measurement

_log = logging.getLogger(__name__)


GIB = 2**30


class Notebook:
    """Measurements of one kind of card with one limit of memory.

    What ran out of memory on a card that is planned as a smaller one says nothing of the whole
    card, so each limit has measurements of its own.

    Args:
        card: its name; what one card took, another of its name and limit does too.
        limit: bytes of its memory that are planned with.
        torch: the version that was measured.
    """

    def __init__(self, db: Database, *, card: str, limit: int, torch: str) -> None:
        self._db = db
        self._card = f"{card}, {limit / GIB:.1f} GiB"
        self._torch = torch
        self._lock = threading.Lock()
        self._new: dict[Call, Measurement] = {}

    def known(self) -> Sequence[Measurement]:
        """From lives before. Nothing, where Postgres is out of reach: it can be measured anew."""
        try:
            return measurements.known(self._db, card=self._card, torch=self._torch)
        except Unavailable as error:
            _log.warning("what was measured before is not known: %s", error)
            return ()

    def note(self, measured: Measurement) -> None:
        """Keep it until it is written; quick, and safe with threads."""
        with self._lock:
            self._new[measured.call] = measured

    def write(self) -> None:
        """Tell Postgres what is new; while that is out of reach it is kept."""
        with self._lock:
            new, self._new = self._new, {}
        if not new:
            return
        try:
            measurements.record(self._db, new.values(), card=self._card, torch=self._torch)
        except Unavailable as error:
            _log.warning("%d measurements are not written yet: %s", len(new), error)
            with self._lock:
                self._new = new | self._new

"""What the accountant knows, on its way to Postgres."""

from __future__ import annotations

from time import monotonic

from farm.db.usage import Spent
from farm.worker.accountant import Accountant, Entry

PAGE = 10.0
"""Seconds between two times that a ledger is written; what a crash may leave in the dark."""


class Ledger:
    """Says which totals of a session are to be written, and remembers which were.

    Args:
        hour: in which the session begins, by Postgres's clock: a worker's own may be wrong.
    """

    def __init__(self, accountant: Accountant, hour: str) -> None:
        self._accountant = accountant
        self._hour = hour
        self._written: dict[Entry, float] = {}
        self._writing: dict[Entry, float] = {}
        self._written_at = monotonic()
        accountant.begin(hour)

    def due(self) -> list[Spent]:
        """What has changed, if it is time to write it."""
        if monotonic() - self._written_at < PAGE:
            return []
        return self._changed(self._accountant.books())

    def last(self) -> list[Spent]:
        """What has changed, at the end of the session; nothing is under way any more."""
        return self._changed(self._accountant.close())

    def written(self, *, hour: str, idle_by_policy: bool) -> None:
        """Postgres has taken what was due, and said what hour it is."""
        if self._writing:
            self._written |= self._writing
            self._writing = {}
            self._written_at = monotonic()
            self._forget_past()
        self._hour = hour
        self._accountant.turn(hour, by_policy=idle_by_policy)

    def _changed(self, books: dict[Entry, float]) -> list[Spent]:
        self._writing = {
            entry: seconds
            for entry, seconds in books.items()
            if seconds != self._written.get(entry)
        }
        return [
            Spent(entry.period, entry.owner.batch_id, entry.owner.checkpoint, entry.use, seconds)
            for entry, seconds in self._writing.items()
        ]

    def _forget_past(self) -> None:
        """Of hours that were over when they were written nothing more will come."""
        for hour in {entry.period for entry in self._written} - {self._hour}:
            self._accountant.forget(hour)
        self._written = {
            entry: seconds for entry, seconds in self._written.items() if entry.period == self._hour
        }

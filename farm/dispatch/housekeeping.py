"""Housekeeping: old rows, files that nothing names, queues of dead sessions.

The leader does it beside its work, in small slices with pauses between them. Each may be cut off
anywhere and done again: what is removed is what nothing can ever name again. A file whose attempt
has neither a lease nor an image row has been fenced, and stays so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice

from farm.broker.queue import Publisher
from farm.db import assets, retention, usage
from farm.db.database import Database
from farm.db.retention import Attempted, Ended
from farm.errors import FarmError
from farm.storage import ImageStore, attempt_of, batch_folder

_log = logging.getLogger(__name__)

ROWS, FILES, BATCHES = 2000, 200, 100
"""At most so many in a slice."""

PAUSE, IDLE = 0.2, 60.0
"""Seconds between two slices, and until somebody looks again once all is done."""

SWEEP_AFTER = 86400.0
"""Seconds after a batch has ended until its files that nothing names go."""

SESSION_DAYS, TOLD_DAYS = 30.0, 7.0
TOLD = ("traces", "reports", "memory")
"""Folders of what workers were asked to tell."""

_FORGOTTEN_DAYS = 7.0
"""Days without a worker after which the files of a host are forgotten."""
_DAYS_BY_HOUR, _DAYS_BY_WORKER = 7, 92
"""Days of which usage is known by hour, and by worker."""
_HOUR = 3600.0


@dataclass(frozen=True)
class Keep:
    """What is kept, in days; None for ever."""

    batches: float | None = None
    attempts: float = 90.0


class Housekeeper:
    """Does one slice after the other.

    Args:
        store: where the images are; it must be the workers' own.
    """

    def __init__(self, store: ImageStore, publisher: Publisher, keep: Keep) -> None:
        self._store = store
        self._publisher = publisher
        self._keep = keep
        self._files: dict[Ended, Iterator[Attempted]] = {}
        self._hourly = 0.0

    @contextmanager
    def at_work(self, db: Database) -> Iterator[None]:
        """Work in a thread while the block runs; no job waits for it."""
        stop = threading.Event()
        thread = threading.Thread(
            target=self._run, args=(db, stop), name="housekeeper", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5)

    def slice(self, db: Database) -> bool:
        """A little of what is to be done; whether there may be more.

        Raises:
            Unavailable: the store is not there, so nothing of it can be told from what is gone.
        """
        self._store.check()
        if time.monotonic() - self._hourly > _HOUR or not self._hourly:
            self._hourly = time.monotonic()
            self._every_hour(db)
        retention.give_up_loading(db)
        more = usage.roll_up(db, hours=_DAYS_BY_HOUR, workers=_DAYS_BY_WORKER, limit=ROWS)
        if self._keep.batches is not None:
            more |= retention.prune(db, days=self._keep.batches, limit=BATCHES) == BATCHES
        more |= self._erase(db)
        more |= self._sweep(db)
        return retention.trim(db, days=self._keep.attempts, limit=ROWS) or more

    def _run(self, db: Database, stop: threading.Event) -> None:
        wait = PAUSE
        while not stop.wait(wait):
            wait = IDLE
            try:
                if self.slice(db):
                    wait = PAUSE
            except FarmError as error:
                _log.warning("housekeeping waits: %s", error)
            except Exception:
                _log.exception("housekeeping waits")

    def _erase(self, db: Database) -> bool:
        """A hidden batch: first its rows, then its files, at last itself."""
        batch = retention.hidden(db)
        if batch is None:
            return False
        if not retention.erase(db, batch.id, limit=ROWS) and self._remove_unnamed(db, batch):
            self._store.remove_folder(batch_folder(batch.id))
            retention.bury(db, batch.id)
            _log.info("batch %d was pruned", batch.id)
        return True

    def _sweep(self, db: Database) -> bool:
        """Files of fenced attempts, once for each batch that has ended."""
        batch = retention.unswept(db, seconds=SWEEP_AFTER)
        if batch is None:
            return False
        if self._remove_unnamed(db, batch):
            retention.swept(db, batch.id)
        return True

    def _remove_unnamed(self, db: Database, batch: Ended) -> bool:
        """Look at a few more files of a batch; whether those were the last."""
        # Put back only when all went well: after a fault they are looked at from the first one on.
        # One that was opened again meanwhile, and has ended again, is another listing's.
        files = self._files.pop(batch, None) or self._attempted(batch)
        self._files = {other: each for other, each in self._files.items() if other.id != batch.id}
        few = list(islice(files, FILES))
        unnamed = retention.unnamed(db, batch.id, few)
        for path in unnamed:
            self._store.delete(path)
        if unnamed:
            _log.info("%d files of batch %d that nothing names are gone", len(unnamed), batch.id)
        if len(few) < FILES:
            return True
        self._files[batch] = files
        return False

    def _attempted(self, batch: Ended) -> Iterator[Attempted]:
        # A file that is older than the batch is another farm's, which had a batch of that number.
        since = batch.created_at.timestamp()
        for path, changed in self._store.listing(batch_folder(batch.id)):
            made_by = attempt_of(path)
            if made_by and changed >= since:
                yield Attempted(*made_by, path)

    def _every_hour(self, db: Database) -> None:
        retention.forget_sessions(db, days=SESSION_DAYS, limit=ROWS)
        assets.forget_hosts(db, days=_FORGOTTEN_DAYS)
        # In this order: a session that opens in between is alive, and has no queue yet here.
        known = self._publisher.known()
        if dead := known - retention.alive(db):
            self._publisher.forget(sorted(dead))
        self._store.remove_partial()
        for path, changed in chain.from_iterable(map(self._store.listing, TOLD)):
            if changed < time.time() - TOLD_DAYS * 86400:
                with suppress(FarmError):
                    self._store.delete(path)

"""The heads of open batches: which jobs of each may be next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from math import ceil

from farm.db import backlog
from farm.db.backlog import OpenBatch
from farm.db.database import Database
from farm.db.leases import Claim, Lease
from farm.db.spans import Span, without
from farm.dispatch.snapshot import Run

MANY = 2000
"""Batches that are looked at."""
EACH = 64
"""Of them, those of one user at most."""
DEPTH = 8
"""Runs of a batch that are looked at, so that those which wait for one host hide none from another.
It never has more spans than that."""
MORE = 512
"""Runs that are looked at in all beside the first of each batch: lest placing takes longer."""
ASIDE = 10_000
"""Batches that are left aside, at most."""


class Heads:
    """Knows the open batches from one cycle to the next: only the leader claims of them, so that
    they are read again only when something else about them may have changed.

    Attributes:
        news: they were read again since this was last set to False.

    Args:
        make: the run of a batch that begins with a job, within the span that this is the first of;
            None where it cannot be read. All jobs of the last run that it is asked for are to be
            within reach, of others only those that more workers can make.
    """

    def __init__(self, make: Callable[[OpenBatch, Span, bool], Run | None]) -> None:
        self._make = make
        self._known = False
        self.news = False
        self._open: dict[int, OpenBatch] = {}
        self._runs: dict[int, list[Run]] = {}
        self._aside: set[int] = set()

    @property
    def waiting_behind(self) -> set[int]:
        """Users of whom other batches may wait behind those that are looked at."""
        if len(self._open) >= MANY:
            return {batch.user_id for batch in self._open.values()}
        counts = Counter(batch.user_id for batch in self._open.values())
        return {user for user, count in counts.items() if count >= EACH}

    def leave_aside(self, batches: Iterable[int]) -> None:
        """Look at others instead of these from the next time on, as long as they are not many."""
        more = set(islice(batches, max(0, ASIDE - len(self._aside))))
        if more:
            self._aside |= more
            self.look_again()

    def take_back(self) -> None:
        """Look at all again."""
        if self._aside:
            self._aside.clear()
            self.look_again()

    def look_again(self) -> None:
        """Read them again next time."""
        self._known = False

    def forget(self) -> None:
        """Make all runs anew: what they are thought to cost has changed."""
        self._runs.clear()

    def turn(self, batch_id: int) -> None:
        """Make the runs of a batch anew: something else than its jobs has changed."""
        self._runs.pop(batch_id, None)

    def runs(self, db: Database, *, least: int) -> list[Run]:
        """The heads of the batches of priority ``least`` and up."""
        if not self._known:
            self._read(db)
        missing = [batch for batch in self._open.values() if batch.id not in self._runs]
        if missing:
            more = MORE - sum(len(runs) - 1 for runs in self._runs.values() if runs)
            for before, batch in enumerate(missing):
                share = max(0, ceil(more / (len(missing) - before)))
                runs = self._runs[batch.id] = self._heads(batch, most=1 + share)
                more -= max(0, len(runs) - 1)
        return [run for runs in self._runs.values() for run in runs if run.priority >= least]

    def claimed(self, claims: Sequence[Claim], placed: Sequence[Lease]) -> None:
        """Follow what was claimed. Who got less than was asked for has changed, and behind a batch
        of which nothing is left there may be another."""
        got = Counter(lease.batch_id for lease in placed if lease.attempt == 1)
        for claim in claims:
            batch = self._open.get(claim.batch_id)
            if batch is not None and not claim.ords:
                spans = without(batch.spans, (claim.first, claim.first + claim.count))
                self._open[batch.id] = batch._replace(spans=spans)
                self.turn(batch.id)
                got[batch.id] -= claim.count
                if not spans:
                    self.look_again()
        if any(count < 0 for count in got.values()):
            self.look_again()

    def _heads(self, batch: OpenBatch, *, most: int) -> list[Run]:
        found: list[Run] = []
        most = min(most, DEPTH)
        for first, end in batch.spans:
            ord = first
            while ord < end and len(found) < most:
                run = self._make(batch, (ord, end), len(found) == most - 1)
                if run is None:
                    return found
                found.append(run)
                ord += run.count
        return found

    def _read(self, db: Database) -> None:
        before = self._open
        found = backlog.open_batches(db, least=0, each=EACH, limit=MANY, aside=self._aside)
        self._open = {batch.id: batch for batch in found}
        self._runs = {
            batch.id: self._runs[batch.id]
            for batch in found
            if batch.id in self._runs and batch == before.get(batch.id)
        }
        self._known = self.news = True

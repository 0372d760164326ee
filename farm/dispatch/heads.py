"""The heads of open batches: which jobs of each may be next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from math import ceil

from farm.db import backlog, leases
from farm.db.backlog import OpenBatch
from farm.db.database import Database
from farm.db.leases import Claim, Lease
from farm.db.spans import Span, without
from farm.dispatch.further import MOST, Further, Idle, Make, Signature, idle, merged
from farm.dispatch.queues import Run
from farm.dispatch.snapshot import Seat

MANY = 2000
"""Batches that are looked at."""
EACH = 64
"""Of them, those of one user at most."""
DEPTH = 8
"""Runs of a batch that are looked at, so that those which wait for one host hide none from
another."""
MORE = 512
"""Runs that are looked at in all beside the first of each batch: lest placing takes longer."""
FRAYED = 256
"""Spans that a batch has at most: beyond that the shortest are set aside, job by job."""
_AT_ONCE = 10_000
"""Jobs that are set aside in one go; longer spans are not."""
ASIDE = 10_000
"""Batches that are left aside, at most; each user may have as many of them."""


class Heads:
    """Knows the open batches from one cycle to the next: only the leader claims of them, so that
    they are read again only when something else about them may have changed.

    Attributes:
        news: they were read again since this was last set to False.

    Args:
        make: the run of a batch that begins with a job, within the span that this is the first of;
            None where it cannot be read. All jobs of the last run that it is asked for are to be
            within reach, of others only those that more workers can make.
        further: looks behind them.
    """

    def __init__(self, make: Make, further: Further) -> None:
        self._make = make
        self._further = further
        self._known = False
        self.news = False
        self._open: dict[int, OpenBatch] = {}
        self._runs: dict[int, list[Run]] = {}
        self._found: dict[int, dict[Signature, list[Run]]] = {}
        self._merged: dict[int, list[Run]] = {}
        self._unsure: set[int] = set()
        self._aside: dict[int, int] = {}

    @property
    def waiting_behind(self) -> set[int]:
        """Users of whom other batches may wait behind those that are looked at."""
        if len(self._open) >= MANY:
            return {batch.user_id for batch in self._open.values()}
        counts = Counter(batch.user_id for batch in self._open.values())
        return {user for user, count in counts.items() if count >= EACH}

    def leave_aside(self, batches: Iterable[int]) -> None:
        """Look at others instead of these from the next time on, as long as they are not many, but
        not of those that a session may still find something of."""
        users = {*self._aside.values(), *(one.user_id for one in self._open.values())}
        each = ASIDE // max(1, len(users))
        taken, before = Counter(self._aside.values()), len(self._aside)
        for batch_id in batches:
            user = self._open[batch_id].user_id
            known = batch_id in self._unsure or batch_id in self._aside
            if not known and taken[user] < each:
                self._aside[batch_id] = user
                taken[user] += 1
        if len(self._aside) > before:
            self.look_again()

    def take_back(self) -> None:
        """Look at all again."""
        if self._aside:
            self._aside.clear()
            self.look_again()

    def set_aside(self, db: Database) -> None:
        """Let no batch have too many spans: they are a part of its row, which is written with every
        claim of it."""
        for batch in self._open.values():
            if len(batch.spans) > FRAYED:
                spans = len(batch.spans) - FRAYED // 2
                leases.set_aside(db, batch.id, spans=spans, jobs=_AT_ONCE)
                self.look_again()

    def look_again(self) -> None:
        """Read them again next time."""
        self._known = False

    def forget(self) -> None:
        """Make all runs anew: what they are thought to cost has changed."""
        for known in (self._runs, self._found, self._merged):
            known.clear()

    def turn(self, batch_id: int) -> None:
        """Make the runs of a batch anew: something else than its jobs has changed."""
        for known in (self._runs, self._found, self._merged):
            known.pop(batch_id, None)

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
        return [
            run
            for batch_id, runs in self._runs.items()
            for run in self._merged.get(batch_id, runs)
            if run.priority >= least
        ]

    def reach(self, db: Database, seats: Iterable[Seat], *, full: Collection[int]) -> None:
        """Have runs that are further on among the heads, for sessions with a free place that none
        suits.

        Args:
            full: users who may have nothing more in flight.
        """
        self.runs(db, least=0)
        self._further.begin()
        self._unsure.clear()
        heads = [run for runs in self._runs.values() for run in runs]
        for one in idle(seats, heads, full):
            left = MOST
            for batch in self._open.values():
                found = None
                if left > 0 and batch.user_id not in full:
                    found = self._further_on(batch, one)
                    left -= len(found or ())
                if found is None:
                    self._unsure.add(batch.id)

    def _further_on(self, batch: OpenBatch, idle: Idle) -> list[Run] | None:
        """What a session could make of a batch; None if that is not known yet."""
        by_session = self._found.setdefault(batch.id, {})
        known = by_session.get(idle.signature)
        heads = self._runs[batch.id]
        if known is None and heads and (known := self._further.of(batch, heads, idle)):
            by_session[idle.signature] = known
            found = [run for runs in by_session.values() for run in runs]
            self._merged[batch.id] = merged(heads, found, partial(self._whole, batch))
        return known if heads else []

    def _whole(self, batch: OpenBatch, span: Span) -> Run | None:
        return self._make(batch, span, True)

    def claimed(self, claims: Sequence[Claim], placed: Sequence[Lease]) -> None:
        """Follow what was claimed. Who got less than was asked for has changed, and behind a batch
        of which nothing is left there may be another."""
        waited = {(claim.batch_id, ord) for claim in claims for ord in claim.ords}
        got = Counter(one.batch_id for one in placed if (one.batch_id, one.ord) not in waited)
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
        for batch_id, batch in before.items():
            if batch != self._open.get(batch_id):
                self.turn(batch_id)
        self._known = self.news = True

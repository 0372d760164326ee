"""Where every second of a device goes: a ledger that adds up to the clock on the wall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from time import monotonic
from typing import Literal, NamedTuple, TypeAlias

from farm.spec.uses import Use

Work: TypeAlias = Literal["denoise", "encode", "decode", "load"]


@dataclass(frozen=True)
class Owner:
    """Whose seconds they are; batch 0 is nobody's."""

    batch_id: int = 0
    checkpoint: str = ""


class Entry(NamedTuple):
    """An account: all seconds of a period that an owner has had for a use."""

    period: str
    owner: Owner
    use: Use


NOBODY = Owner()


class Accountant:
    """Divides the time since it began among those who had the device.

    The engine's thread says what the device has done, in seconds of the device, and when there is
    nothing to do. Between two settlements the clock is divided among the work done in proportion
    to it, so work that overlaps is not counted twice and pauses between forwards are counted once.
    What an attempt has had is kept until it is known how it ended.

    Safe with threads. Seconds are the process's own, by a clock that nobody sets; what period they
    belong to is told from outside.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._period = ""
        self._books: defaultdict[Entry, float] = defaultdict(float)
        self._owners: dict[str, Owner] = {}
        self._open: dict[str, defaultdict[tuple[Work, str], float]] = {}
        self._claims: defaultdict[tuple[str, Work, str], float] = defaultdict(float)
        self._resting = True
        self._aside: list[Owner] = []
        self._by_policy = False
        self._since = self._mark = clock()

    def begin(self, period: str) -> None:
        """Forget what was, and count from now on."""
        with self._lock:
            self._since = self._mark = self._clock()
            self._books.clear()
            self._claims.clear()
            self._period = period

    def turn(self, period: str, *, by_policy: bool) -> None:
        """From now on seconds belong to ``period``, and idle ones to policy or to waiting."""
        with self._lock:
            self._settle()
            self._period, self._by_policy = period, by_policy

    def enter(self, key: str, owner: Owner) -> None:
        """An attempt begins. Work for keys that did not enter is nobody's: what the farm itself
        wanted, to measure the device or to test it."""
        with self._lock:
            self._owners[key] = owner
            self._open.setdefault(key, defaultdict(float))

    def leave(self, key: str, use: Use | None) -> None:
        """An attempt has ended: its seconds count as what they were, or all of them as ``use``."""
        with self._lock:
            self._settle()
            self._close(key, use)

    def wake(self) -> None:
        """There is something to do."""
        with self._lock:
            if self._resting:
                self._idle(self._clock())
            self._resting = False

    def rest(self) -> None:
        """There is nothing to do any more."""
        with self._lock:
            if not self._resting:
                self._divide(self._clock())
            self._resting = True

    def work(self, work: Work, shares: Mapping[str, float], checkpoint: str = "") -> None:
        """The device has worked for attempts, so many seconds for each.

        Args:
            checkpoint: with which; by default that of each attempt's owner.
        """
        with self._lock:
            now = self._clock()
            if self._resting:
                self._idle(now)
                self._resting = False
            self._mark = now
            for key, seconds in shares.items():
                self._claims[key, work, checkpoint] += seconds

    @contextmanager
    def aside(self, checkpoint: str) -> Iterator[None]:
        """In the block a checkpoint is loaded that no attempt waits for. Time counts as that
        only where there is nothing else to do."""
        owner = Owner(checkpoint=checkpoint)
        with self._lock:
            self._settle()
            self._aside.append(owner)
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._aside.remove(owner)

    def books(self) -> dict[Entry, float]:
        """Every account as it stands; nothing of attempts and work under way."""
        with self._lock:
            self._settle()
            return dict(self._books)

    def close(self) -> dict[Entry, float]:
        """Every account at the end; what is still under way has failed."""
        with self._lock:
            now = self._clock()
            if self._resting:
                self._idle(now)
            else:
                self._divide(now)
            for key in list(self._owners):
                self._close(key, "failed")
            return dict(self._books)

    def forget(self, period: str) -> None:
        """Let go of the accounts of a period that is over."""
        with self._lock:
            for entry in [entry for entry in self._books if entry.period == period]:
                del self._books[entry]

    def _settle(self) -> None:
        """Account for the time up to now, or while the device works up to its last news."""
        if self._resting:
            self._idle(self._clock())
        elif self._claims:
            self._divide(self._mark)

    def _idle(self, now: float) -> None:
        owner = self._aside[-1] if self._aside else NOBODY
        use: Use = "load" if self._aside else "policy" if self._by_policy else "waiting"
        if now > self._since:
            self._books[Entry(self._period, owner, use)] += now - self._since
        self._since = self._mark = now

    def _divide(self, until: float) -> None:
        """Give the time since the last settlement to those who had the device in it."""
        if not self._claims:
            self._idle(until)
            return
        total = sum(self._claims.values())
        even = 1 / len(self._claims)
        for (key, work, checkpoint), seconds in self._claims.items():
            part = (until - self._since) * (seconds / total if total > 0 else even)
            if key in self._owners:
                self._open[key][work, checkpoint] += part
            else:
                self._books[Entry(self._period, NOBODY, "policy")] += part
        self._claims.clear()
        self._since = self._mark = until

    def _close(self, key: str, use: Use | None) -> None:
        owner = self._owners.pop(key, NOBODY)
        for (work, checkpoint), seconds in self._open.pop(key, {}).items():
            whose = replace(owner, checkpoint=checkpoint or owner.checkpoint)
            self._books[Entry(self._period, whose, use or work)] += seconds

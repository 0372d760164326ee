"""What came of a simulated run."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from farm.db.users import WINDOW
from farm.dispatch.fairness import jain
from farm.dispatch.queues import INTERACTIVE, NORMAL
from farm.dispatch.simulator.trace import Batch, Trace
from farm.dispatch.simulator.worker import Turn
from farm.spec.batch import rank


class Record:
    """Written while a trace runs."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.makespan = 0.0
        self.done = 0
        self.loads = 0
        self.load_seconds = 0.0
        self.longest_passed = 0.0
        self.waits = array("f")
        self.interactive_waits = array("f")
        self.fairness: list[float] = []
        """Jain's index of each window."""
        self._had: defaultdict[int, float] = defaultdict(float)
        self._busy: set[int] | None = None
        self._window = WINDOW

    @property
    def left(self) -> int:
        """Jobs that are not done; in the end those that no card ever took."""
        return self.trace.jobs - self.done

    def began(self, now: float, turn: Turn) -> None:
        waited = now + turn.load - turn.job.came
        self.waits.append(waited)
        if turn.job.level == INTERACTIVE:
            self.interactive_waits.append(waited)
        if turn.load:
            self.loads += 1
            self.load_seconds += turn.load

    def ended(self, now: float, turn: Turn) -> None:
        self.makespan = now
        self.done += 1
        if turn.job.level == NORMAL:
            self._had[turn.job.user] += turn.load + turn.work

    def passed(self, seconds: float) -> None:
        """A batch was placed that had been passed over for so long."""
        self.longest_passed = max(self.longest_passed, seconds)

    def cycle(self, now: float, waiting: Iterable[Batch]) -> None:
        """What the dispatcher left waiting."""
        users = self.trace.users
        busy = {
            batch.user
            for batch in waiting
            if rank(batch.priority) == NORMAL and users[batch.user].max_in_flight is None
        }
        self._busy = busy if self._busy is None else self._busy & busy
        if now >= self._window:
            self._close()
            self._window = now + WINDOW

    def _close(self) -> None:
        """Compare those who had normal work waiting all through the window."""
        users = self.trace.users
        had = [self._had[user] / users[user].weight for user in self._busy or ()]
        if len(had) > 1:
            self.fairness.append(jain(had))
        self._had.clear()
        self._busy = None


@dataclass(frozen=True)
class Result:
    """The numbers of a run; times in seconds.

    Attributes:
        jain: mean of Jain's index over windows, of the GPU-seconds of users who had normal work
            waiting all through the window, were they entitled to any number of places; None where
            there never were two.
        longest_passed: that a batch whose turn it was had to wait for the sake of warmer ones.
    """

    makespan: float
    loads: int
    load_seconds: float
    wait_p50: float
    wait_p95: float
    interactive_p95: float
    jain: float | None
    longest_passed: float
    done: int
    left: int


def result(record: Record) -> Result:
    """What a record amounts to."""
    waits = sorted(record.waits)
    interactive = sorted(record.interactive_waits)
    return Result(
        makespan=record.makespan,
        loads=record.loads,
        load_seconds=record.load_seconds,
        wait_p50=_quantile(waits, 0.5),
        wait_p95=_quantile(waits, 0.95),
        interactive_p95=_quantile(interactive, 0.95),
        jain=sum(record.fairness) / len(record.fairness) if record.fairness else None,
        longest_passed=record.longest_passed,
        done=record.done,
        left=record.left,
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that so large a share of all are not above; 0 of none."""
    return ordered[ceil(share * len(ordered)) - 1] if ordered else 0.0

"""Which number of rows makes forwards quickest, for each of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from farm.spec.measurement import Call
from farm.worker.memory.experience import ENOUGH, Experience

OVERHEAD_SECONDS = 0.005
"""A forward this quick is mostly the host's own work, which more rows share."""
WORTH, WORTH_ANEW = 0.03, 0.08
"""Gain in rows a second that keeps a larger bucket, and that brings back one given up."""
PATIENCE, MOST_PATIENCE = 300, 4800
"""Forwards until a bucket that was given up is tried again; twice as many after each trial."""


@dataclass
class _Trials:
    """Of the next larger bucket of a kind of forward, one after the other.

    Attributes:
        waited: forwards since the last one.
        patience: forwards until the next one.
        left: forwards of the one that is on; 0 where none is.
    """

    waited: int = 0
    patience: int = PATIENCE
    left: int = 0


class Worth:
    """Remembers what was given up. Belongs to the engine's thread.

    What was given up for its timings has no new ones, so it is tried now and then: twelve forwards
    of every three hundred at first, of every five thousand in the end.

    Args:
        buckets: rows that forwards are padded to, ascending.

    Attributes:
        changes: trials that began or ended so far.
    """

    def __init__(self, buckets: Sequence[int], experience: Experience) -> None:
        self._buckets = buckets
        self._experience = experience
        self._kept: dict[Call, int] = {}
        self._trials: dict[Call, _Trials] = {}
        self.changes = 0

    def rows(self, call: Call) -> int:
        """Most rows up to those of ``call`` that make its kind of forward quicker a row, or that
        are tried once more."""
        kind = replace(call, rows=0)
        best = self._kept[kind] = self._best(call)
        if best == call.rows:
            self._trials.pop(kind, None)
            return best
        trials = self._trials.setdefault(kind, _Trials())
        larger = (rows for rows in self._buckets if best < rows <= call.rows)
        return min(larger, default=best) if trials.left else best

    def timed(self, call: Call) -> None:
        """There was another forward, after its seconds were learnt."""
        kind = replace(call, rows=0)
        trials = self._trials.get(kind)
        if trials is None:
            return
        if call.rows <= self._kept[kind]:
            trials.waited += not trials.left
            if trials.waited >= trials.patience:
                trials.waited, trials.left = 0, ENOUGH + 1
                trials.patience = min(2 * trials.patience, MOST_PATIENCE)
                self.changes += 1
        elif trials.left:
            trials.left -= 1
            self.changes += not trials.left

    def _best(self, call: Call) -> int:
        timed = self._timed(call)
        kept = self._kept.get(replace(call, rows=0), call.rows)
        best = min(timed, default=call.rows)
        for rows, seconds in timed.items():
            gain = (rows / seconds) / (best / timed[best]) - 1
            enough = WORTH if rows <= kept else WORTH_ANEW
            if timed[best] < OVERHEAD_SECONDS or gain >= enough:
                best = rows
        # Larger ones that were never timed must have their chance to be.
        return best if timed and best < max(timed) else call.rows

    def _timed(self, call: Call) -> dict[int, float]:
        """Seconds of forwards like ``call``, with as many rows or fewer, by their rows."""
        buckets = (rows for rows in self._buckets if rows <= call.rows)
        known = {rows: self._experience.of(replace(call, rows=rows)).seconds for rows in buckets}
        return {rows: seconds for rows, seconds in known.items() if seconds is not None}

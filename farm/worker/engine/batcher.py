"""What the GPU does next. Pure: it sees only descriptions of jobs, and decides.

The rules, in order:

1. A finished latent is decoded at once: that completes a job and frees its memory.
2. **Groups take turns**, by seconds of the device: jobs of the same weights and size, where weights
   are a checkpoint with a set of LoRAs on it, or with none. See :mod:`farm.worker.engine.turns` for
   how long a group may have to wait.
3. Of a group its oldest job is in every forward until it is done, and younger ones ride along while
   there are rows left, the oldest first. So every job is some day the oldest, and cannot starve.
4. A rider whose text is not encoded yet is encoded before the next forward, so that batches
   fill up; there are never more such riders than a forward has rows.
5. Texts of different length share a forward by repeating their blocks to the common multiple,
   up to ``MAX_BLOCKS`` or what the oldest job needs by itself; and all texts of a forward
   together stay within ``MAX_BLOCKS`` for each of its possible rows. A job whose own two texts
   have no near common multiple runs alone, one row at a time, and repeats nothing.
6. A forward is padded to the smallest bucket that holds it. A ``strict`` job pins one bucket,
   which nothing that is learnt on the way changes, and its own text length. That makes its image
   bit-equal under any load.
7. A job of a higher rank is older than all of a lower one, and its group goes before theirs. They
   stand where they are, between two steps, and go on when it is done; they ride along where there
   are rows left.
8. A job that needs a higher precision than its checkpoint is held in runs alone, one row at a
   time, so that it takes no more memory than others do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import ceil, lcm
from typing import TypeAlias

from farm.spec.networks import Loras
from farm.worker.engine.decisions import Decision, Decode, Encode, Forward, Load, Waiting
from farm.worker.engine.turns import Turns, Weights

MAX_BLOCKS = 4
QUANTUM, PATIENCE = 0.5, 10.0
"""Seconds; see :class:`farm.worker.engine.turns.Turns`."""

RowsAllowed: TypeAlias = Callable[[str, int, int], int]
Seconds: TypeAlias = Callable[[str, int, int, int], float]


class Batcher:
    """Decides, by the rules above.

    Args:
        rows_allowed: most rows of one forward for (checkpoint, width, height); asked only of
            resident checkpoints.
        buckets: row counts that forwards are padded to.
        rows_pinned: rows of a forward with ``strict`` jobs, for the same; by default those allowed.
        seconds: that a forward of (checkpoint, width, height, rows) is expected to take; 1 by
            default.
        quantum, patience: of turns.
    """

    def __init__(
        self,
        rows_allowed: RowsAllowed,
        buckets: Iterable[int],
        *,
        rows_pinned: RowsAllowed | None = None,
        seconds: Seconds = lambda *_: 1.0,
        quantum: float = QUANTUM,
        patience: float = PATIENCE,
    ) -> None:
        self._rows_allowed = rows_allowed
        self._rows_pinned = rows_pinned or rows_allowed
        self._buckets = sorted(buckets)
        self._seconds = seconds
        self._turns = Turns(quantum=quantum, patience=patience)
        self._worn: dict[str, Loras] = {}

    def decide(
        self, jobs: Sequence[Waiting], resident: Sequence[str], now: float
    ) -> Decision | None:
        """What to do next, or None without jobs.

        Args:
            jobs: all of them, the oldest first.
            resident: checkpoints in memory.
            now: seconds on a clock that never goes back.
        """
        if not jobs:
            return None
        # Who was away wears nothing when it is back; it may even be another file by then.
        self._worn = {name: loras for name, loras in self._worn.items() if name in resident}
        jobs = sorted(jobs, key=lambda job: -job.rank)
        for job in jobs:
            if job.stage == "decode":
                return Decode(job.order)

        def ready(weights: Weights) -> bool:
            worn = self._worn.get(weights.checkpoint, ())
            return weights.checkpoint in resident and worn == weights.loras

        first = {job.group for job in jobs if job.rank == jobs[0].rank}
        group = self._turns.choose((job.group for job in jobs), first, ready, now)
        checkpoint, loras = group.weights
        if checkpoint not in resident:
            return Load(checkpoint)
        self._worn[checkpoint] = loras
        decision, seconds = self._advance([job for job in jobs if job.group == group])
        self._turns.serve(group, seconds, now)
        return decision

    def spent(self, job: Waiting, seconds: float, now: float) -> None:
        """What was decided last took the device so long for this job, which nobody expected."""
        self._turns.serve(job.group, seconds, now)

    def _advance(self, jobs: Sequence[Waiting]) -> tuple[Encode | Forward, float]:
        """One step for the oldest of a group and all that can ride along, and what it takes."""
        oldest = jobs[0]
        most, pinned = (
            1 if oldest.alone or oldest.lift else self._bucket_within(rows, oldest)
            for rows in (self._rows_allowed, self._rows_pinned)
        )
        batch = _Batch(oldest, most, pinned)
        for job in jobs[1:]:
            batch.take(job)
        for job in batch.jobs:
            if job.stage == "encode":
                return Encode(job.order), 0.0
        shape = oldest.checkpoint, oldest.width, oldest.height
        bucket = pinned if batch.strict else self._bucket(min(batch.rows, most))
        forward = Forward(
            *shape,
            orders=tuple(job.order for job in batch.jobs),
            bucket=bucket,
            blocks=batch.blocks,
            loras=oldest.loras,
            lift=oldest.lift,
        )
        return forward, ceil(batch.rows / bucket) * self._seconds(*shape, bucket)

    def _bucket_within(self, rows: RowsAllowed, job: Waiting) -> int:
        allowed = rows(job.checkpoint, job.width, job.height)
        return max((bucket for bucket in self._buckets if bucket <= allowed), default=1)

    def _bucket(self, rows: int) -> int:
        return next((bucket for bucket in self._buckets if bucket >= rows), rows)


class _Batch:
    """Jobs of a group that share one forward."""

    def __init__(self, oldest: Waiting, most_rows: int, pinned_rows: int) -> None:
        self.jobs = [oldest]
        self.rows = oldest.rows
        self.blocks = oldest.blocks
        self.strict = oldest.strict
        self._most_rows = most_rows
        self._pinned_rows = pinned_rows

    def take(self, job: Waiting) -> None:
        """Let a job ride along if it fits."""
        oldest = self.jobs[0]
        rows = self.rows + job.rows
        blocks = lcm(self.blocks, job.blocks)
        strict = self.strict or job.strict
        most = min(self._most_rows, self._pinned_rows) if strict else self._most_rows
        if (
            not job.alone
            and not job.lift
            and rows <= most
            and blocks <= max(MAX_BLOCKS, oldest.blocks)
            and rows * blocks <= most * MAX_BLOCKS
            and not (self.strict and blocks != self.blocks)
            and not (job.strict and blocks != job.blocks)
        ):
            self.jobs.append(job)
            self.rows = rows
            self.blocks = blocks
            self.strict = strict

"""Where a job can be and how it moves: the whole life of a job, as a table.

A job's state is which table its row is in (``farm.db.queries`` holds one statement for each
move); this module is the same thing without a database, so that it can be read at a glance
and tested against the real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    PENDING = "pending"  # at or past the batch's cursor, and in no table
    ASSIGNED = "assigned"  # leases, not started
    RUNNING = "running"  # leases, started
    WAITING = "waiting"  # requeue
    SUCCEEDED = "succeeded"  # outcomes, with an image
    FAILED = "failed"  # outcomes, with an error
    CANCELLED = "cancelled"  # outcomes, or in no table of a cancelled batch


class Move(StrEnum):
    CLAIM = "claim"  # dispatcher: the cursor passes it or its requeue row goes, a lease appears
    SET_ASIDE = "set aside"  # dispatcher: the cursor passes it, a requeue row appears
    START = "start"  # worker: stamps its lease
    SUCCEED = "succeed"  # worker: lease -> outcome and image
    FAIL = "fail"  # worker: lease -> outcome with error
    RETRY = "retry"  # worker: lease -> requeue, the failure is counted
    RELEASE = "release"  # draining worker: lease -> requeue, nothing is counted
    REAP = "reap"  # dispatcher: the lease of a dead session -> requeue
    BURY = "bury"  # dispatcher: a job that killed its workers -> outcome with its history
    CANCEL = "cancel"  # owner: at once when not in flight
    STOP = "stop"  # worker: lease -> cancelled outcome, on the owner's wish
    REPEAT = "repeat"  # owner: a failed outcome -> requeue, with a new budget


TABLE: dict[Move, dict[State, State]] = {
    Move.CLAIM: {State.PENDING: State.ASSIGNED, State.WAITING: State.ASSIGNED},
    Move.SET_ASIDE: {State.PENDING: State.WAITING},
    Move.START: {State.ASSIGNED: State.RUNNING},
    Move.SUCCEED: {State.RUNNING: State.SUCCEEDED},
    Move.FAIL: {State.RUNNING: State.FAILED},
    Move.RETRY: {State.RUNNING: State.WAITING},
    Move.RELEASE: {State.ASSIGNED: State.WAITING, State.RUNNING: State.WAITING},
    Move.REAP: {State.ASSIGNED: State.WAITING, State.RUNNING: State.WAITING},
    Move.BURY: {State.RUNNING: State.FAILED},
    Move.CANCEL: {State.PENDING: State.CANCELLED, State.WAITING: State.CANCELLED},
    Move.STOP: {State.ASSIGNED: State.CANCELLED, State.RUNNING: State.CANCELLED},
    Move.REPEAT: {State.FAILED: State.WAITING},
}

ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
IN_FLIGHT = frozenset({State.ASSIGNED, State.RUNNING})


def after(state: State, move: Move) -> State | None:
    """The state that ``move`` leads to, or None where the move does not apply."""
    return TABLE[move].get(state)


SOFT_FAILURES = 3
"""A job that failed this often, each time for a reason another try may cure, has failed."""

FATAL_CRASHES = 3
"""A job during which this many workers died has failed; before the last try it runs alone."""

BLAMED = ("worker", "hung", "numeric")
"""Classes of failures that may be the worker's own fault: bad memory makes wrong numbers, too."""

BAD_RUN = 3
"""A worker that failed jobs of so many batches, and made no image in between, is quarantined."""

_HOPELESS = frozenset({"input", "missing asset", "does not fit", "numeric"})


@dataclass(frozen=True)
class Verdict:
    """What becomes of a failed attempt: the move, the new failure count, seconds to wait."""

    move: Move
    failures: int
    delay: float = 0.0


def judge(failure_class: str, failures: int) -> Verdict:
    """Fail at once, or try again: another try cures neither bad input nor a missing file."""
    if failure_class in _HOPELESS:
        return Verdict(Move.FAIL, failures + 1)
    if failure_class == "infrastructure":
        # Not the job's fault: its budget is untouched, only the pace slows down.
        return Verdict(Move.RETRY, failures, delay=15.0)
    if failures + 1 >= SOFT_FAILURES:
        return Verdict(Move.FAIL, failures + 1)
    return Verdict(Move.RETRY, failures + 1, delay=float(2**failures))


def runs_alone(crashes: int) -> bool:
    """Whether a job is suspected of killing workers and so gets one to itself."""
    return crashes == FATAL_CRASHES - 1

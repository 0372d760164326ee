"""Quarantine: a worker that fails one batch after the other gets no more jobs until it has shown
that it makes right pictures.

Canaries are judged here, not by the worker: who is suspected has no say.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby

from farm.db import health, sessions
from farm.db.database import Database
from farm.db.health import Failure
from farm.spec.canary import wrong
from farm.spec.moves import BAD_RUN, BLAMED

_log = logging.getLogger(__name__)

WINDOW = 3600.0
"""Seconds after which a failure is forgotten."""


def bad_run(failures: Sequence[Failure]) -> Failure | None:
    """The first of a worker's last :data:`BAD_RUN` failures if those are of as many batches.

    A job that fails again and again counts once, and so does a death that takes many jobs: one bad
    job must not put away worker after worker.

    Args:
        failures: of one worker, the newest first.
    """
    events: dict[str, Failure] = {}
    batches: set[int] = set()
    for failure in failures:
        events.setdefault(failure.event, failure)
        batches.add(failure.batch_id)
        if len(events) >= BAD_RUN and len(batches) >= BAD_RUN:
            return failure
    return None


def tend(db: Database) -> None:
    """Put bad workers into quarantine, test those that are due, let back who passed."""
    _put_away(db)
    for worker in health.order_canaries(db):
        _log.info("%s gets its canaries", worker)
    _judge(db)


def _put_away(db: Database) -> None:
    found = health.failures(db, blamed=BLAMED, seconds=WINDOW)
    changed = False
    for (host, worker), group in groupby(found, key=lambda each: (each.host, each.worker)):
        failures = list(group)
        first = bad_run(failures)
        if first is None or health.has_succeeded(db, first):
            continue
        reason = (
            f"It failed jobs of {BAD_RUN} batches and made no image in between; "
            f"the last: {failures[0].detail}"
        )
        changed |= bool(health.quarantine(db, worker, reason, host=host, by_hand=False))
        _log.error("%s on %s is quarantined. %s", worker, host, reason)
    if changed and (told := all_away(db)):
        _log.error(told)


def _judge(db: Database) -> None:
    for host, worker, answers in health.answered(db):
        told = answers.get("error") or wrong(answers.get("fields", ()))
        if told is None:
            health.resume(db, worker, host=host, drained=False)
            _log.warning("%s on %s has passed its canaries and gets jobs again", worker, host)
        else:
            health.test_failed(db, host, worker, told)
            _log.warning("%s on %s stays in quarantine: %s", worker, host, told)


def all_away(db: Database) -> str | None:
    """What to tell when every worker is in quarantine, so that nothing is made."""
    states = {session.state for session in sessions.live(db)}
    if "quarantined" not in states or "live" in states:
        return None
    told = "; ".join(f"{each.worker}: {each.reason}" for each in health.active(db))
    return f"Every worker is in quarantine, nothing is made. {told}"

"""Leadership: the one dispatcher that acts; others stand by."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from farm.db import wakeup
from farm.db.database import Database
from farm.db.wakeup import Listener

_log = logging.getLogger(__name__)

STALE = 5.0
"""Seconds without a heartbeat after which a leader is ended."""

BEAT = 1.0
"""Seconds between two heartbeats; each is a write."""

_POLL = 0.25


@dataclass(frozen=True)
class Leadership:
    """The right to act, until another has it.

    Attributes:
        db: every transaction of it makes sure that the epoch is still this one.
    """

    db: Database
    epoch: int
    listener: Listener

    def beat(self) -> None:
        """Say that this leader is well; Unavailable if another leads by now."""
        self.listener.beat(self.epoch)

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, see :meth:`farm.db.wakeup.Listener.wait`."""
        return self.listener.wait(seconds)


@contextmanager
def leadership(db: Database, stop: threading.Event) -> Iterator[Leadership | None]:
    """Wait until this process leads. None when ``stop`` was set first.

    A leader that is killed is followed within a quarter of a second, one that is frozen or out of
    reach within ``STALE`` seconds and that quarter.

    Raises:
        Unavailable: Postgres is out of reach, or went away: the leadership is lost.
    """
    with wakeup.listener(db.url, name=db.name) as listener:
        while (epoch := listener.lead()) is None:
            if name := listener.oust(seconds=STALE):
                _log.warning("%s was not heard of for %.0f s and is ended", name, STALE)
            elif stop.wait(_POLL):
                yield None
                return
        _log.info("leading, epoch %d", epoch)
        yield Leadership(db.fenced(epoch), epoch, listener)

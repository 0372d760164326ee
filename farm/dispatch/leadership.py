"""Leadership: the one dispatcher that acts holds an advisory lock; others stand by."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from farm.db import wakeup

_log = logging.getLogger(__name__)

_POLL = 0.25

Wake = Callable[[float], None]


@contextmanager
def leadership(url: str, stop: threading.Event) -> Iterator[Wake | None]:
    """Wait until this process leads, and give the function that waits to be woken.

    None when ``stop`` was set first. The lock goes with its connection, so a leader that is
    killed is followed within a quarter of a second. Two leaders would do no harm: every
    statement that moves a job locks or fences what it moves.

    Raises:
        Unavailable: Postgres is out of reach, or went away: the leadership is lost.
    """
    with wakeup.listener(url) as listener:
        while not listener.try_lead():
            if stop.wait(_POLL):
                yield None
                return
        _log.info("leading")
        yield listener.wait

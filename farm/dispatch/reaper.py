"""The reaper: takes back what sessions cannot finish, and sends again what they never heard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from farm.broker.queue import Publisher
from farm.db import leases, sessions
from farm.db.database import Database
from farm.db.leases import Overdue, Returned

_log = logging.getLogger(__name__)

BLIND = 3.0
"""Seconds without a look at Postgres after which nobody is judged until ``GRACE`` is over."""

GRACE = 6.0
"""Seconds in which every live session has told that it lives, once Postgres answers again."""

REPUBLISH = 5.0
"""Seconds after which a message is sent again; twice as many after each time."""

FORGOTTEN = 60.0
"""Seconds by which an attempt that its session forgot is older than all that it tells of."""

PUBLISHES = 4
"""A session that heard nothing of what was sent so often has a consumer that hangs."""


class Reaper:
    """Looks after sessions about once a second, for as long as a leadership lasts.

    Args:
        clock: seconds that only ever grow.
    """

    def __init__(self, publisher: Publisher, clock: Callable[[], float] = time.monotonic) -> None:
        self._publisher = publisher
        self._clock = clock
        self._looked = self._watching = float("-inf")

    def look(self, db: Database) -> list[Returned]:
        """Reap what is dead, and send again what is lost; the attempts that were taken back."""
        leases.flag_unwanted(db)
        returned = self._reap(db)
        overdue = leases.unstarted(db, older_than=REPUBLISH)
        draining = {lease.session_id for lease in overdue if lease.draining}
        if draining:
            # It listens no more, and finishes what runs.
            returned += leases.reap(db, sorted(draining), crashed=False, started=False)
        waiting = [lease for lease in overdue if not lease.draining]
        if waiting and self._republish(db, waiting):
            returned += self._end_deaf(db, waiting)
        return returned

    def _reap(self, db: Database) -> list[Returned]:
        returned = self._remember_forgotten(db)
        dead = sessions.expire(db, overdue=self._may_judge())
        if dead:
            lost = leases.reap(db, dead, crashed=True)
            _log.warning("sessions %s are dead; %d jobs go back to the queue", dead, len(lost))
            returned += lost
        for crashed, left in sessions.left_behind(db).items():
            returned += leases.reap(db, left, crashed=crashed)
            dead += left
        if dead:
            self._publisher.forget(dead)
        return returned

    def _remember_forgotten(self, db: Database) -> list[Returned]:
        """Take back what a live session has started and knows nothing of."""
        found = leases.reap_forgotten(db, slack=FORGOTTEN)
        if found:
            named = [f"{lease.batch_id}-{lease.ord}.{lease.attempt}" for lease in found]
            _log.error("attempts %s were forgotten by their workers", named)
        return found

    def _may_judge(self) -> bool:
        """Whether we saw Postgres long enough to know that who is overdue is dead.

        While Postgres is away nobody's heartbeats arrive, and a dispatcher that was away itself
        does not know for how long it was.
        """
        now = self._clock()
        if now - self._looked > BLIND:
            self._watching = now
        self._looked = now
        return now - self._watching > GRACE

    def _republish(self, db: Database, overdue: Sequence[Overdue]) -> bool:
        """Send again what is no longer in its session's queue; False if the broker is out of
        reach."""
        missing = set()
        for session_id in dict.fromkeys(lease.session_id for lease in overdue):
            queued = self._publisher.waiting(session_id)
            if queued is None:
                return False
            if queued == 0:
                missing.add(session_id)
        lost = [lease for lease in overdue if lease.session_id in missing]
        if lost:
            if not self._publisher.publish(lease.message for lease in lost):
                return False
            _log.warning("%d attempts were lost by the broker and sent again", len(lost))
        leases.republished(db, [lease.message for lease in overdue])
        return True

    def _end_deaf(self, db: Database, overdue: Sequence[Overdue]) -> list[Returned]:
        """End the sessions that live but never hear; their processes start anew."""
        deaf = sorted({lease.session_id for lease in overdue if lease.publishes >= PUBLISHES})
        if not deaf:
            return []
        _log.error("sessions %s do not hear what is sent to them and are ended", deaf)
        sessions.expire(db, overdue=False, ids=deaf)
        returned = leases.reap(db, deaf, crashed=False)
        self._publisher.forget(deaf)
        return returned

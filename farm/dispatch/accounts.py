"""The accounts of the leader: what users have had, what jobs cost, who is owed a correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.db.backlog import Entitled, Spent
from farm.db.leases import Lease, Returned
from farm.db.rates import Measured
from farm.dispatch.cost import Costs
from farm.dispatch.fairness import Shares
from farm.dispatch.queues import Queue, Run
from farm.dispatch.snapshot import Claimant, Seat, Snapshot
from farm.dispatch.waiting import contenders

_MANY = 200_000
_NOTHING = 1e-6
"""Seconds that rounding may leave."""


@dataclass(frozen=True)
class _Charge:
    """What an attempt was charged when it was placed."""

    weight: float
    run: Run
    seat: Seat

    @property
    def seconds(self) -> float:
        return self.run.cost / self.seat.speed


class Accounts:
    """Charges jobs when they are placed, and what they truly took when they have ended."""

    def __init__(self) -> None:
        self._shares = Shares()
        self._costs = Costs()
        self._open: dict[tuple[int, int, int], _Charge] = {}
        self._ahead: dict[str, float] = {}

    def begin(self, measured: Measured) -> None:
        """Lead, with what jobs and loads took before. What was placed in an earlier leadership may
        have ended in somebody else's: its estimates stand."""
        self._costs.know(measured)
        self._open.clear()
        self._ahead.clear()

    @property
    def costs(self) -> Costs:
        """What jobs and loads are thought to take."""
        return self._costs

    def claimants(
        self, users: Sequence[Entitled], queues: Sequence[Queue]
    ) -> Mapping[int, Claimant]:
        """What each user with work is entitled to now, when these queues wait."""
        active = [user.user_id for user in users]
        behind = contenders(queues)
        queued = [user.user_id for user in users if user.user_id in behind and _room(user) != 0]
        times = self._shares.level(active, queued)
        return {
            user.user_id: Claimant(times[user.user_id], user.weight, _room(user)) for user in users
        }

    def charge(self, placed: Sequence[Lease], snapshot: Snapshot) -> None:
        """Charge leases by the runs of the snapshot that they came from."""
        seats = {seat.session_id: seat for seat in snapshot.seats}
        for lease in placed:
            run = snapshot.run_of(lease.batch_id, lease.ord)
            charge = _Charge(snapshot.users[run.user].weight, run, seats[lease.session_id])
            self._shares.charge(run.user, charge.seconds, charge.weight)
            self._open[lease.batch_id, lease.ord, lease.attempt] = charge
            self._hold(charge, charge.seconds)
        while len(self._open) > _MANY:  # of attempts whose end was never heard of
            charge = self._open.pop(next(iter(self._open)))
            self._hold(charge, -charge.seconds)

    def ahead(self, session_id: str) -> float:
        """Seconds that what a session holds is expected to take."""
        return self._ahead.get(session_id, 0.0)

    def give_back(self, returned: Sequence[Returned]) -> None:
        """Take back the charges of attempts that never began; the others have ended, and are
        settled."""
        for attempt in returned:
            if attempt.started:
                continue
            charge = self._open.pop(attempt[:3], None)
            if charge is not None:
                self._hold(charge, -charge.seconds)
                self._shares.charge(charge.run.user, -charge.seconds, charge.weight)

    def settle(self, ended: Sequence[Spent]) -> None:
        """Correct the charges of attempts that ended; those settled before are left alone."""
        for attempt in ended:
            charge = self._open.pop((attempt.batch_id, attempt.ord, attempt.attempt), None)
            if charge is None:
                continue
            self._hold(charge, -charge.seconds)
            if attempt.result == "lost":
                continue  # nobody knows what it took: the estimate stands
            run, seconds = charge.run, attempt.gpu_seconds or 0.0
            self._shares.charge(run.user, seconds - charge.seconds, charge.weight)
            if attempt.load_seconds:
                self._costs.learn_load(run.checkpoint, attempt.load_seconds)
            elif attempt.result == "succeeded" and seconds:
                self._learn(attempt, charge, max(0.0, seconds - attempt.upscale_seconds))

    def _learn(self, attempt: Spent, charge: _Charge, seconds: float) -> None:
        """What it took, but for what its upscaler did, and that by itself."""
        run, card = charge.run, charge.seat.card
        self._costs.learn(run.checkpoint, run.size, seconds, card)
        if attempt.upscaler and attempt.upscaled:
            self._costs.learn_upscale(
                attempt.upscaler, attempt.upscaled, attempt.upscale_seconds, card
            )

    def _hold(self, charge: _Charge, seconds: float) -> None:
        session_id = charge.seat.session_id
        held = self._ahead.pop(session_id, 0.0) + seconds
        if held > _NOTHING:
            self._ahead[session_id] = held


def _room(user: Entitled) -> int | None:
    if user.max_in_flight is None:
        return None
    return max(0, user.max_in_flight - user.in_flight)

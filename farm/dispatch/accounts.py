"""The accounts of the leader: what users have had, what jobs cost, who is owed a correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from farm.db.backlog import Entitled, Spent
from farm.db.leases import Lease
from farm.dispatch.cost import Costs
from farm.dispatch.fairness import Shares
from farm.dispatch.snapshot import Claimant, Run, Seat, Snapshot
from farm.spec.batch import INTERACTIVE_FROM, rank

_MANY = 200_000


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

    def know(self, rates: Mapping[str, float]) -> None:
        """Begin with what jobs of each checkpoint took before, in GPU-seconds a unit."""
        for checkpoint, rate in rates.items():
            self._costs.learn(checkpoint, 1.0, rate)

    @property
    def costs(self) -> Costs:
        """What jobs and loads are thought to take."""
        return self._costs

    def claimants(
        self, users: Sequence[Entitled], runs: Sequence[Run]
    ) -> Mapping[int, Claimant]:
        """What each user with work is entitled to now, when these runs wait."""
        active = [user.user_id for user in users]
        behind = _contenders(runs)
        queued = [user.user_id for user in users if user.user_id in behind and _room(user) != 0]
        times = self._shares.level(active, queued)
        return {
            user.user_id: Claimant(times[user.user_id], user.weight, _room(user)) for user in users
        }

    def charge(self, placed: Sequence[Lease], snapshot: Snapshot) -> None:
        """Charge leases by the runs of the snapshot that they came from."""
        by_batch = {run.batch_id: run for run in snapshot.runs}
        seats = {seat.session_id: seat for seat in snapshot.seats}
        for lease in placed:
            run = by_batch[lease.batch_id]
            charge = _Charge(snapshot.users[run.user].weight, run, seats[lease.session_id])
            self._shares.charge(run.user, charge.seconds, charge.weight)
            self._open[lease.batch_id, lease.ord, lease.attempt] = charge
        while len(self._open) > _MANY:  # of attempts whose end was never heard of
            del self._open[next(iter(self._open))]

    def settle(self, ended: Sequence[Spent]) -> None:
        """Correct the charges of attempts that ended; those settled before are left alone."""
        for attempt in ended:
            charge = self._open.pop((attempt.batch_id, attempt.ord, attempt.attempt), None)
            if charge is None or attempt.result == "lost":
                continue  # nobody knows what a lost one took: the estimate stands
            run, seconds = charge.run, attempt.gpu_seconds or 0.0
            self._shares.charge(run.user, seconds - charge.seconds, charge.weight)
            if attempt.load_seconds:
                self._costs.learn_load(run.checkpoint, attempt.load_seconds)
            elif attempt.result == "succeeded" and seconds:
                self._costs.learn(run.checkpoint, run.size, seconds, charge.seat.card)


def _contenders(runs: Sequence[Run]) -> set[int]:
    """Who is served in turns now: the users of the highest class that has to wait. Interactive work
    does not, and lower classes have no turn."""
    levels = {run.user: rank(run.priority) for run in reversed(runs) if not _at_once(run)}
    return {user for user, level in levels.items() if level == max(levels.values())}


def _at_once(run: Run) -> bool:
    return run.priority >= INTERACTIVE_FROM


def _room(user: Entitled) -> int | None:
    if user.max_in_flight is None:
        return None
    return max(0, user.max_in_flight - user.in_flight)

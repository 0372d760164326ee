"""The fair schedule if work were a fluid: everybody has exactly their share at every moment.

The users of the highest class with work have the cards by weight, one batch after the other in
their own order; work flows at the mean speed of the cards, and nothing is ever loaded. What a
checkpoint has of the cards in such a schedule it must have, minute by minute, in every fair one.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from dataclasses import dataclass
from math import ceil, inf

from farm.dispatch.simulator.trace import Batch, Trace
from farm.spec.batch import rank

BIN, BINS = 10.0, 6
"""Seconds of a bin, and bins of the minute over which shares are looked at."""
_NOTHING = 1e-6


@dataclass
class _Flow:
    """A batch that flows: its parts, each a checkpoint and the card-seconds left."""

    batch: Batch
    number: int
    parts: list[tuple[str, float]]

    @property
    def place(self) -> tuple[int, int]:
        return -self.batch.priority, self.number

    def __lt__(self, other: _Flow) -> bool:
        return self.place < other.place


def fair_loads(trace: Trace) -> int:
    """Cards that hold each checkpoint in the minute in which its users' shares need most of them,
    summed over checkpoints: so many loads any fair schedule needs, from cold cards."""
    found = 0
    for bins in _bins(trace).values():
        sums = [
            sum(bins.get(first + number, 0.0) for number in range(BINS))
            for first in {place - back for place in bins for back in range(BINS)}
        ]
        found += ceil(max(sums) / (BIN * BINS) - _NOTHING)
    return found


def _bins(trace: Trace) -> dict[str, dict[int, float]]:
    """Card-seconds of each checkpoint by bin."""
    speed = sum(card.speed for card in trace.cards) / len(trace.cards)
    found: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    queues: dict[int, list[_Flow]] = {}
    coming = [_flow(number, batch, speed) for number, batch in enumerate(trace.batches)][::-1]
    now = 0.0
    while coming or queues:
        if not queues:
            now = max(now, coming[-1].batch.at)
        while coming and coming[-1].batch.at <= now:
            flow = coming.pop()
            insort(queues.setdefault(flow.batch.user, []), flow)
        shares = _shares(trace, queues)
        soonest = [queues[user][0].parts[0][1] / share for user, share in shares.items()]
        arrival = coming[-1].batch.at - now if coming else inf
        step = min(arrival, (now // BIN + 1) * BIN - now, *soonest)
        for user, share in shares.items():
            name, left = queues[user][0].parts[0]
            found[name][int(now // BIN)] += share * step
            _drain(queues, user, left - share * step)
        now += max(step, _NOTHING)
    return found


def _flow(number: int, batch: Batch, speed: float) -> _Flow:
    parts = [(part.checkpoint, part.jobs * part.seconds / speed) for part in batch.parts]
    return _Flow(batch, number, parts)


def _shares(trace: Trace, queues: dict[int, list[_Flow]]) -> dict[int, float]:
    """Cards of each user who has any."""
    levels = {user: rank(queue[0].batch.priority) for user, queue in queues.items()}
    highest = max(levels.values())
    weights = {u: trace.users[u].weight for u, level in levels.items() if level == highest}
    return {u: weight * len(trace.cards) / sum(weights.values()) for u, weight in weights.items()}


def _drain(queues: dict[int, list[_Flow]], user: int, left: float) -> None:
    """So much is left of what a user's first batch is at."""
    queue = queues[user]
    parts = queue[0].parts
    if left > _NOTHING:
        parts[0] = (parts[0][0], left)
        return
    del parts[0]
    if not parts:
        del queue[0]
    if not queue:
        del queues[user]

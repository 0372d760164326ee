"""What no policy can do better, for a trace.

**Makespan.** What came at a time t or later, and needs cards that hold checkpoints of m bytes,
takes at least its GPU-seconds over the speed of all such cards; the bound is the largest of t plus
that, over all t and m. And no job ends sooner after its coming than the fastest card makes it.

**Loads.** Within a makespan, a card gives a checkpoint at most its speed times that. So the work of
a checkpoint takes at least so many of the fastest cards that may hold it, and each of them loads
it. And as many cards as all the work needs load something. The bound is the larger of the two,
within the makespan that the policy itself had: a slower one needs fewer cards. It is met by who
lets everybody wait for the sake of loads; what a fair schedule needs is told by
:mod:`farm.dispatch.simulator.fluid`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from farm.dispatch.simulator.trace import Trace


def makespan(trace: Trace) -> float:
    """Seconds that the trace takes at the least."""
    sizes = sorted({trace.checkpoints[p.checkpoint].bytes for b in trace.batches for p in b.parts})
    return max(_makespan_of(trace, size) for size in sizes)


def _makespan_of(trace: Trace, size: int) -> float:
    """That of the jobs whose checkpoint has so many bytes or more."""
    speed = sum(card.speed for card in trace.cards if card.weights_bytes >= size)
    fastest = max((card.speed for card in trace.cards if card.weights_bytes >= size), default=0.0)
    if not speed:
        return 0.0  # none of them can ever run
    work, best = 0.0, 0.0
    for batch in reversed(trace.batches):
        for part in batch.parts:
            if trace.checkpoints[part.checkpoint].bytes >= size:
                work += part.jobs * part.seconds
                best = max(best, batch.at + part.seconds / fastest)
        best = max(best, batch.at + work / speed)
    return best


def loads(trace: Trace, makespan: float) -> int:
    """Loads of checkpoints that any schedule of this length needs, from cold cards."""
    work: dict[str, float] = defaultdict(float)
    for batch in trace.batches:
        for part in batch.parts:
            work[part.checkpoint] += part.jobs * part.seconds
    by_checkpoint = 0
    for name, seconds in work.items():
        size = trace.checkpoints[name].bytes
        able = [card.speed for card in trace.cards if card.weights_bytes >= size]
        by_checkpoint += cards_for(seconds, able, makespan)
    speeds = [card.speed for card in trace.cards]
    return max(by_checkpoint, cards_for(sum(work.values()), speeds, makespan))


def cards_for(seconds: float, speeds: Sequence[float], makespan: float) -> int:
    """The fewest cards that do so many GPU-seconds within the makespan."""
    count = 0
    for speed in sorted(speeds, reverse=True):
        if seconds <= 1e-9:
            break
        seconds -= speed * makespan
        count += 1
    return count

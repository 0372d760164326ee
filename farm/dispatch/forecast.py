"""When work will be done: a fluid of GPU-seconds, and what the farm's own errors say about it.

Generalised processor sharing (Parekh and Gallager 1993), which stride scheduling comes close to:
within a class all users are served at once, each at a rate by weight, and each user's batches one
after the other.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import quantiles

from farm.spec.batch import rank

WORTH = 8.0
"""Loads of work that a batch has for each of its cards, about: busy cards load for more, idle ones
for less (:mod:`farm.dispatch.demand`). Of 8 and 12, 8 missed less in bench/forecasts.py."""
NEW = math.inf
"""Stands for a batch that is not accepted yet: the youngest of all."""

PRIOR = (0.7, 0.85, 0.95, 1.0, 1.0, 1.0, 1.1, 1.2, 1.5, 1.8)
"""What batches take, over what they were thought to take, before anything is known of that."""

BANDS = (10.0, 600.0)
"""Seconds between which forecasts err alike: what hardly matters in an hour is all in a second."""

KEPT = 200
"""Batches of a band that errors are taken from."""


@dataclass(frozen=True)
class Work:
    """What is left of a batch.

    Attributes:
        batch_id: or :data:`NEW`.
        seconds: of a card of speed 1, loads included.
        jobs: that are left.
        load: seconds that a card needs before it can begin, if it holds no such checkpoint.
    """

    batch_id: float
    user: int
    priority: int
    seconds: float
    jobs: int
    load: float = 0.0


@dataclass(frozen=True)
class Cards:
    """What does the work: how many cards, and how fast they are together."""

    number: int
    speed: float


@dataclass(frozen=True)
class Eta:
    """Seconds within which a batch ends as likely as not, and nine times out of ten."""

    p50: float
    p90: float


def finish_times(
    works: Iterable[Work], weights: Mapping[int, float], cards: Cards
) -> dict[float, float]:
    """Seconds until each batch has ended, by batch, if no other comes.

    Args:
        weights: of users; 1 for those who are not there.
        cards: at least one.
    """
    classes: dict[int, list[Work]] = defaultdict(list)
    for work in works:
        classes[rank(work.priority)].append(work)
    now, found = 0.0, dict[float, float]()
    for level in sorted(classes, reverse=True):
        now = _share_out(classes[level], weights, cards.speed, now=now, found=found)
    for level_works in classes.values():
        for work in level_works:
            found[work.batch_id] = max(found[work.batch_id], alone(work, cards))
    return found


def alone(work: Work, cards: Cards) -> float:
    """Seconds that it takes with all the cards to itself.

    No job runs on two of them, and a card that must load a checkpoint first is only worth it
    while there is more work than that for each (see :mod:`farm.dispatch.placement`).
    """
    speed = cards.speed / cards.number
    number = max(1, min(cards.number, work.jobs))
    if work.load:
        number = min(number, max(1, int(work.seconds / work.load / WORTH)))
    each = math.ceil(work.jobs / number) / work.jobs if work.jobs else 1.0
    return work.seconds * each / speed


class TrackRecord:
    """How forecasts have erred so far.

    Args:
        taken: (seconds thought, seconds taken) of batches that have ended, the newest first.
    """

    def __init__(self, taken: Iterable[tuple[float, float]] = ()) -> None:
        ratios: list[list[float]] = [[*PRIOR] for _ in range(len(BANDS) + 1)]
        for thought, took in taken:
            found = ratios[_band(thought)]
            if thought > 0 and len(found) < KEPT:
                found.append(took / thought)
        tenths = [quantiles(each, n=10, method="inclusive") for each in ratios]
        self._factors = [(each[4], each[8]) for each in tenths]

    def eta(self, thought: float) -> Eta:
        """What so many seconds turn out to be."""
        p50, p90 = self._factors[_band(thought)]
        return Eta(thought * p50, thought * p90)


def _band(seconds: float) -> int:
    return sum(seconds >= bound for bound in BANDS)


def _share_out(
    works: Sequence[Work],
    weights: Mapping[int, float],
    speed: float,
    *,
    now: float,
    found: dict[float, float],
) -> float:
    """Let a class have all cards from ``now`` on: notes when each batch ends; the end of all."""
    by_user: dict[int, list[Work]] = defaultdict(list)
    for work in sorted(works, key=lambda work: (-work.priority, work.batch_id)):
        by_user[work.user].append(work)
    marks: list[tuple[float, bool, Work]] = []
    for user, own in by_user.items():
        had = 0.0
        for place, work in enumerate(own, 1):
            had += work.seconds / weights.get(user, 1.0)
            marks.append((had, place == len(own), work))
    total = sum(weights.get(user, 1.0) for user in by_user)
    had = 0.0  # seconds that each has had, a unit of weight
    for mark, last, work in sorted(marks, key=lambda mark: mark[:2]):
        now += (mark - had) * total / speed
        had = mark
        found[work.batch_id] = now
        if last:
            total -= weights.get(work.user, 1.0)
    return now

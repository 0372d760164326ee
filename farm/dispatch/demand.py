"""How many cards each checkpoint should have: its users' share, and what its work is worth.

Cards are shared out class by class, by weight, to no user more than their work is worth loads
for. What is left goes to work that is worth a load to a card without any.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import copysign
from statistics import median_low

from farm.dispatch.queues import INTERACTIVE, Queue
from farm.dispatch.snapshot import Claimant

LEVEL = 60.0
"""Seconds behind or ahead that are as good as level: no checkpoint is loaded for them."""
CATCH_UP = 60.0
"""Seconds in which one who has fallen further behind should be level again."""
MOST = 3.0

WORTH = 12.0
"""Loads that the work waiting for a checkpoint must be worth, for each card that holds it: what
loads of busy cards cost is then less than a twelfth of what they bring."""
LITTLE_WORTH = 2.0
"""The same where cards are left that have nothing to do: their time is free, but not what a load
takes of disks, nor the checkpoints that must go for it."""


def wanted(
    claimants: Mapping[int, Claimant], classes: Mapping[int, Mapping[int, Queue]], cards: int
) -> dict[str, float]:
    """Cards that should serve each checkpoint, if each user had their share right now.

    Args:
        claimants: all users.
        classes: what waits, by class, the highest first, and by user.
    """
    found: dict[str, float] = {}
    left = float(cards)
    for level, users in classes.items():
        if level == INTERACTIVE:
            continue  # it is soon over, and moves no checkpoints
        wants = {user: _wants(queue.most_important) for user, queue in users.items()}
        most = {user: sum(names.values()) for user, names in wants.items()}
        got = _shares({user: claimants[user] for user in users}, most, cards=cards, left=left)
        left -= sum(got.values())
        for user, names in wants.items():
            _add(found, names, got[user] / max(most[user], 1e-9))
    if left >= 1:
        _employ(found, classes, left)
    return found


def _shares(
    users: Mapping[int, Claimant], most: Mapping[int, float], *, cards: int, left: float
) -> dict[int, float]:
    """What each user of a class gets of the cards that are left: who is behind more of them until
    they are level, who is ahead fewer, or what others have no use for."""
    weights = {user: one.weight for user, one in users.items()}
    middle = median_low([one.time for one in users.values()])
    pace = cards / sum(weights.values())
    lifted = {user: one.weight * _lift((middle - one.time) / pace) for user, one in users.items()}
    got = shared(left, lifted, most)
    rest = {user: most[user] - got[user] for user in users}
    more = shared(left - sum(got.values()), weights, rest)
    return {user: got[user] + more[user] for user in users}


def _employ(
    found: dict[str, float], classes: Mapping[int, Mapping[int, Queue]], idle: float
) -> None:
    """Cards that nobody should have by that may load for less: they would do nothing else."""
    more: dict[str, float] = {}
    for users in classes.values():
        for queue in users.values():
            _add(more, _wants(queue.most_important), WORTH / LITTLE_WORTH)
    rest = {name: max(0.0, amount - found.get(name, 0.0)) for name, amount in more.items()}
    _add(found, rest, min(1.0, idle / max(sum(rest.values()), 1e-9)))


def _add(found: dict[str, float], amounts: Mapping[str, float], part: float) -> None:
    for name, amount in amounts.items():
        found[name] = found.get(name, 0.0) + amount * part


def shared(
    amount: float, weights: Mapping[int, float], most: Mapping[int, float]
) -> dict[int, float]:
    """Share an amount by weight, to nobody more than they want (max-min fair)."""
    found = dict.fromkeys(weights, 0.0)
    order = sorted((most[one] / weights[one], one) for one in weights if weights[one] > 0)
    total = sum(weights[one] for _, one in order)
    for ratio, one in order:
        found[one] = weights[one] * min(ratio, amount / total)
        amount -= found[one]
        total -= weights[one]
    return found


def _lift(seconds: float) -> float:
    """How many times their share somebody should have who is so far behind, ahead if negative."""
    beyond = max(0.0, abs(seconds) - LEVEL)
    return min(MOST, max(0.0, 1.0 + copysign(beyond, seconds) / CATCH_UP))


def _wants(queue: Queue) -> dict[str, float]:
    """Cards that a user's runs could use, by checkpoint."""
    loads = queue.loads
    return {name: work / max(WORTH * loads[name], 1e-9) for name, work in queue.work.items()}

"""Whose forward is next, fairly. Pure, as the batcher whose part it is.

Groups of jobs whose weights are ready take turns by deficit round robin (Shreedhar and Varghese
1995, "Efficient fair queuing using deficit round robin"), counted in seconds of the device: a turn
lasts until a group has used up its credit, and then it gets a quantum more for its next one. The
last forward of a turn may use more than there is; that debt is paid with the next turn. A quantum
is never less than the longest forward of those here, so that one always pays it.

Weights that are not ready cost a load, so turns of weights are longer: while what is ready has
work, the others wait until ``patience`` seconds have passed since they came and since weights
were changed last. It is then the turn of those that were served longest ago, or came first.

So a group whose weights are ready waits for no more than a quantum and a forward of each other
group that was here when its last turn ended, and the seconds that two groups got which always had
work differ by no more than that. Weights wait for no more than ``patience``, a forward and a load
of each of the others that were here when they were served last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from math import inf
from typing import NamedTuple

from farm.spec.networks import Loras


class Weights(NamedTuple):
    """A checkpoint, and the LoRAs on its UNet."""

    checkpoint: str
    loras: Loras


class Group(NamedTuple):
    """Jobs that can share a forward, as far as their texts and rows allow.

    Attributes:
        width, height: of their images, in pixels.
        lift: precisions above the checkpoint's own in which they are denoised.
        alone: they share with nobody, not even with each other.
    """

    weights: Weights
    width: int
    height: int
    lift: int
    alone: bool


class Turns:
    """Remembers who had the device for how long.

    Args:
        quantum: seconds of a group's turn, at least.
        patience: seconds of a turn of weights, while others wait to be loaded or put on.
    """

    def __init__(self, *, quantum: float, patience: float) -> None:
        self._quantum = quantum
        self._patience = patience
        # In the order of turns; always more than 0.
        self._credit: dict[Group, float] = {}
        self._longest: dict[Group, float] = {}
        self._served: dict[Weights, float] = {}
        self._changed = -inf
        self._awaited: Weights | None = None

    def choose(
        self,
        groups: Iterable[Group],
        wanted: Collection[Group],
        ready: Callable[[Weights], bool],
        now: float,
    ) -> Group:
        """The group whose turn it is.

        Args:
            groups: of all jobs, the oldest job's first.
            wanted: those of them that may have a turn now, at least one.
            ready: whether weights are loaded and put on.
            now: seconds on a clock that never goes back.
        """
        self._note(groups, now)
        waiting = [group for group in self._credit if group in wanted]
        for group in waiting:
            if group.weights == self._awaited:
                return group
        self._awaited = None
        prepared = [group for group in waiting if ready(group.weights)]
        others = [group for group in waiting if not ready(group.weights)]
        if not others:
            return prepared[0]
        eldest = min(others, key=lambda group: self._served[group.weights])
        since = max(self._served[eldest.weights], self._changed)
        if prepared and now - since < self._patience:
            return prepared[0]
        self._awaited = eldest.weights
        return eldest

    def serve(self, group: Group, seconds: float, now: float) -> None:
        """Charge a group, whose weights are ready by now, with seconds of the device."""
        self._longest[group] = max(seconds, self._longest[group])
        self._credit[group] -= seconds
        if self._credit[group] <= 0:
            # Last again, with a quantum more.
            self._credit[group] = self._credit.pop(group) + self._turn
        self._served[group.weights] = now
        if group.weights == self._awaited:
            self._awaited, self._changed = None, now

    def _note(self, groups: Iterable[Group], now: float) -> None:
        """Forget who is gone, with what is left of their credit; who is new comes last."""
        here = dict.fromkeys(groups)
        known = {group: credit for group, credit in self._credit.items() if group in here}
        self._longest = {group: self._longest.get(group, 0.0) for group in here}
        new = (group for group in here if group not in known)
        self._credit = known | dict.fromkeys(new, self._turn)
        self._served = {g.weights: self._served.get(g.weights, now) for g in self._credit}

    @property
    def _turn(self) -> float:
        return max(self._quantum, *self._longest.values())

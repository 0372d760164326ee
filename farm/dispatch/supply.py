"""How many cards each checkpoint has of those that it should have.

If nobody were to load anything any more, the cards that hold a checkpoint would have to do its
work. Each shares its time among what it holds; a checkpoint that gets too little of it lacks cards,
and a card that is asked for too little has time to spare. Loads are worth it only for the one on
the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_ROUNDS = 5
_HALF = 0.5


class Supply:
    """What of the wanted cards there is.

    Args:
        wanted: cards by checkpoint, such as 2.5.
        warm: what each card holds.
    """

    def __init__(self, wanted: Mapping[str, float], warm: Sequence[Sequence[str]]) -> None:
        self._wanted = wanted
        held = [[name for name in names if name in wanted] for names in warm]
        pulls = [1.0] * len(held)
        for _ in range(_ROUNDS):
            used = self._used(held, pulls)
            # Who is asked for more than they have is asked less next time, and others more.
            pulls = [pull / max(use, 0.5) for pull, use in zip(pulls, used, strict=True)]
        self.spare = [max(0.0, 1.0 - use) for use in used]
        self._missing = dict(wanted)
        for number, names in enumerate(held):
            for name in names:
                self._missing[name] -= self._parts[number][name] / max(1.0, used[number])

    def lacks(self, name: str) -> bool:
        """Whether another card should load a checkpoint."""
        missing = self._missing.get(name, 0.0)
        return missing > min(_HALF, self._wanted.get(name, 0.0) / 2)

    def idles(self, number: int) -> bool:
        """Whether a card has half of its time to spare."""
        return self.spare[number] > _HALF

    def load(self, number: int, name: str) -> None:
        """A card loads a checkpoint."""
        part = min(self.spare[number], max(0.0, self._missing.get(name, 0.0)))
        self.spare[number] -= part
        self._missing[name] = self._missing.get(name, 0.0) - part

    def _used(self, held: Sequence[Sequence[str]], pulls: Sequence[float]) -> list[float]:
        """Of the time of each card, how much is asked for."""
        pull = dict.fromkeys(self._wanted, 0.0)
        for names, own in zip(held, pulls, strict=True):
            for name in names:
                pull[name] += own
        self._parts = [
            {name: self._wanted[name] * own / pull[name] for name in names}
            for names, own in zip(held, pulls, strict=True)
        ]
        return [sum(parts.values()) for parts in self._parts]

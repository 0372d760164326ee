"""A trace: the cards of a farm, and the batches that came in. JSON lines on disk.

Each line is an object with one key, which says what it is: ``card``, ``checkpoint``, ``user`` or
``batch``, and as its value the fields of the class of that name below. Order does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from farm.errors import InvalidInput


@dataclass(frozen=True)
class Card:
    """A worker.

    Attributes:
        speed: GPU-seconds of a card of speed 1 that it does in a second.
        weights_bytes: of checkpoints that it holds at once.
        places: jobs that it is sent at once, the running one included.
    """

    name: str
    kind: str
    speed: float
    weights_bytes: int
    places: int


@dataclass(frozen=True)
class Checkpoint:
    """``load_seconds`` are those of any card."""

    name: str
    bytes: int
    load_seconds: float


@dataclass(frozen=True)
class User:
    id: int
    weight: float = 1.0
    max_in_flight: int | None = None


@dataclass(frozen=True)
class Part:
    """Jobs of a batch that follow each other on one checkpoint.

    Attributes:
        seconds: that one takes on a card of speed 1, loads not counted.
        size: its units of work, see :func:`farm.dispatch.cost.units`.
    """

    checkpoint: str
    jobs: int
    seconds: float
    size: float = 40.0


@dataclass(frozen=True)
class Batch:
    """``at`` is when it came, in seconds since the first one did."""

    at: float
    user: int
    priority: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Trace:
    cards: tuple[Card, ...]
    checkpoints: dict[str, Checkpoint]
    users: dict[int, User]
    batches: tuple[Batch, ...]

    @property
    def jobs(self) -> int:
        return sum(part.jobs for batch in self.batches for part in batch.parts)

    def with_cards(self, change: int) -> Trace:
        """So many cards more, like those there are in turn, or fewer, the last ones first.

        Raises:
            InvalidInput: none would be left.
        """
        if change < 0:
            if len(self.cards) + change < 1:
                raise InvalidInput(
                    f"workers: {change} leaves none of {len(self.cards)}.",
                    field="workers",
                    value=change,
                    remedy=f"Take away at most {len(self.cards) - 1}.",
                )
            return replace(self, cards=self.cards[:change])
        more = (
            replace(self.cards[number % len(self.cards)], name=f"more{number}")
            for number in range(change)
        )
        return replace(self, cards=(*self.cards, *more))


_KINDS = {"card": Card, "checkpoint": Checkpoint, "user": User, "batch": Batch}


def lines(trace: Trace) -> Iterator[str]:
    """The trace as it stands in a file."""
    parts: dict[str, Iterable[Card | Checkpoint | User | Batch]] = {
        "card": trace.cards,
        "checkpoint": trace.checkpoints.values(),
        "user": trace.users.values(),
        "batch": trace.batches,
    }
    for kind, found in parts.items():
        for one in found:
            yield json.dumps({kind: asdict(one)})


def read(written: Iterable[str]) -> Trace:
    """The trace that :func:`lines` wrote.

    Raises:
        InvalidInput: a line is none of a trace; names its number.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for number, line in enumerate(written, 1):
        if line.strip():
            kind, one = _read_line(number, line)
            found[kind].append(one)
    trace = Trace(
        cards=tuple(found["card"]),
        checkpoints={one.name: one for one in found["checkpoint"]},
        users={one.id: one for one in found["user"]},
        batches=tuple(sorted(found["batch"], key=lambda one: one.at)),
    )
    return _whole(trace)


def _read_line(number: int, line: str) -> tuple[str, Any]:
    try:
        ((kind, values),) = json.loads(line).items()
        known = {field.name for field in fields(_KINDS[kind])}
        values = {name: value for name, value in values.items() if name in known}
        if kind == "batch":
            values["parts"] = tuple(Part(**part) for part in values["parts"])
        return kind, _KINDS[kind](**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidInput(
            f"Line {number} of the trace cannot be read: {error}.",
            field="trace",
            value=line[:80].strip(),
            remedy="Each line is an object with one key: card, checkpoint, user or batch.",
        ) from None


def _whole(trace: Trace) -> Trace:
    used = {part.checkpoint for batch in trace.batches for part in batch.parts}
    if missing := sorted(used - set(trace.checkpoints)):
        raise InvalidInput(
            f"The trace has batches, but no checkpoint {missing[0]!r}.",
            field="trace",
            value=missing[0],
            remedy="Add a line for each checkpoint that batches name.",
        )
    if not trace.cards or not trace.batches:
        raise InvalidInput(
            "The trace has no cards or no batches.",
            field="trace",
            remedy="Add a line for each card and each batch.",
        )
    users = {batch.user: User(batch.user) for batch in trace.batches}
    return replace(trace, users={**users, **trace.users})

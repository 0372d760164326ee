"""A trace: the cards of a farm, and the batches that came in. JSON lines on disk.

Each line is an object with one key, which says what it is: ``card``, ``checkpoint``, ``user`` or
``batch``, and as its value the fields of the class of that name below. Order matters only among
batches that came at the same time, and for which cards are taken away first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from farm.errors import InvalidInput
from farm.spec.batch import Priority
from farm.spec.problems import explain

MOST_CARDS = 10_000

Name = Annotated[str, Field(min_length=1)]
Bytes = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Some = Annotated[int, Field(ge=1)]


class _Strict:
    """A field that nobody knows is a misspelt one."""

    __pydantic_config__ = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Card(_Strict):
    """A worker.

    Attributes:
        speed: GPU-seconds of a card of speed 1 that it does in a second.
        weights_bytes: of checkpoints that it holds at once.
        places: jobs that it is sent at once, the running one included.
    """

    name: Name
    kind: str
    speed: Positive
    weights_bytes: Bytes
    places: Some


@dataclass(frozen=True)
class Checkpoint(_Strict):
    """``load_seconds`` are those of any card."""

    name: Name
    bytes: Bytes
    load_seconds: Seconds


@dataclass(frozen=True)
class User(_Strict):
    id: int
    weight: Positive = 1.0
    max_in_flight: Annotated[int, Field(ge=0)] | None = None


@dataclass(frozen=True)
class Part(_Strict):
    """Jobs of a batch that follow each other on one checkpoint.

    Attributes:
        seconds: that one takes on a card of speed 1, loads not counted.
        size: its units of work, see :func:`farm.dispatch.cost.units`.
    """

    checkpoint: Name
    jobs: Some
    seconds: Positive
    size: Positive = 40.0


@dataclass(frozen=True)
class Batch(_Strict):
    """``at`` is when it came, in seconds since the first one did."""

    at: Seconds
    user: int
    priority: Priority
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


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
            InvalidInput: none would be left, or more than :data:`MOST_CARDS`.
        """
        have = len(self.cards)
        if not 1 <= have + change <= MOST_CARDS:
            raise InvalidInput(
                f"workers: {change:+d} to {have} cards makes {have + change}.",
                field="workers",
                value=change,
                remedy=f"Simulate 1 to {MOST_CARDS} cards.",
            )
        if change < 0:
            return replace(self, cards=self.cards[:change])
        like = (self.cards[number % have] for number in range(change))
        more = (replace(card, name=f"{card.name}+{n}") for n, card in enumerate(like, have))
        return replace(self, cards=(*self.cards, *more))


_KINDS: dict[str, TypeAdapter[Any]] = {
    "card": TypeAdapter(Card),
    "checkpoint": TypeAdapter(Checkpoint),
    "user": TypeAdapter(User),
    "batch": TypeAdapter(Batch),
}


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
        InvalidInput: a line is none of a trace (names its number), or the lines make no whole.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in _KINDS}
    for number, line in enumerate(written, 1):
        if line.strip():
            kind, one = _read_line(number, line)
            found[kind].append(one)
    _once(one.name for one in found["card"])
    _once(one.name for one in found["checkpoint"])
    _once(one.id for one in found["user"])
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
        return kind, _KINDS[kind].validate_python(values)
    except ValidationError as error:
        finding = error.errors(include_url=False)[0]
        raise explain(finding, prefix=f"trace, line {number}, {kind}") from None
    except (ValueError, KeyError, AttributeError):
        raise InvalidInput(
            f"Line {number} of the trace is none of a trace: {line[:80].strip()!r}.",
            field="trace",
            value=line[:80].strip(),
            remedy="Each line is an object with one key: card, checkpoint, user or batch.",
        ) from None


def _once(names: Iterable[Any]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InvalidInput(
                f"The trace has {name!r} {count} times.",
                field="trace",
                value=name,
                remedy="Give each card, checkpoint and user a line and a name of its own.",
            )


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
    users = dict(trace.users)
    for batch in trace.batches:
        users.setdefault(batch.user, User(batch.user))
    return replace(trace, users=users)

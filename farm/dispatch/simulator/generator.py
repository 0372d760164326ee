"""Traces made up: many people at one farm, a few checkpoints that most of them want."""

from __future__ import annotations

from random import Random

from farm.dispatch.simulator.trace import Batch, Card, Checkpoint, Part, Trace, User
from farm.spec.batch import PRIORITIES

GIB = 2**30

PLACES = 4
"""Jobs that a card is sent at once."""

_CARDS = (
    # share, kind, speed, GiB for checkpoints
    (0.50, "24gb", 1.0, 13.5),
    (0.20, "24gb fast", 1.8, 13.5),
    (0.20, "12gb", 0.5, 7.0),
    (0.10, "8gb", 0.35, 5.2),
)
_FAMILIES = (
    # share of checkpoints, GiB, seconds to load, seconds an image on a card of speed 1
    (0.6, 2.0, 4.0, 1.5),
    (0.4, 4.9, 12.0, 6.0),
)
_SKEW = 1.0
_INTERACTIVE = 0.02
_BACKGROUND = 0.1
_MIXED_SWEEP = 0.15
_ARRIVALS = 0.4


def mixed(*, cards: int, jobs: int, users: int, checkpoints: int, seed: int = 1) -> Trace:
    """The mixed trace: sweeps of very different size, small interactive batches all along.

    - Checkpoint number k is wanted in proportion to 1/k; 60 % are small and quick, 40 % large.
    - Half of the cards are alike; a fifth is faster, the rest slower with less memory.
    - Of the users, a third work interactively: batches of one to four images on one of three
      checkpoints of theirs, at random times all along, 2 % of all jobs together.
    - The others share the remaining jobs in batches whose size is lognormal (sigma 1), a tenth of
      them in the background class; one in seven is a sweep over up to four checkpoints. Half of
      them wait at the start, the others come at random times in the first 40 % of the time that
      all the work takes.

    ``jobs`` is met roughly.
    """
    random = Random(seed)
    models = _checkpoints(random, checkpoints)
    farm = _cards(cards)
    people = {number: User(number) for number in range(1, users + 1)}
    third = max(1, users // 3)
    sweeps = _sweeps(random, models, range(third + 1, users + 1), jobs)
    work = sum(part.jobs * part.seconds for batch in sweeps for part in batch.parts)
    span = work / sum(card.speed for card in farm)
    batches = [
        Batch(batch.at * _ARRIVALS * span, batch.user, batch.priority, batch.parts)
        for batch in sweeps
    ]
    batches += _interactive(random, models, range(1, third + 1), jobs=jobs, span=span)
    batches.sort(key=lambda batch: batch.at)
    names = {model.name: model for model, _ in models}
    return Trace(farm, names, people, tuple(batches))


Models = list[tuple[Checkpoint, float]]
"""Checkpoints, the most wanted first, and what an image on each takes."""


def _checkpoints(random: Random, count: int) -> Models:
    found = []
    for number in range(count):
        _, size, load, image = _FAMILIES[random.random() >= _FAMILIES[0][0]]
        checkpoint = Checkpoint(f"checkpoint{number}", int(size * GIB), load)
        found.append((checkpoint, image * random.uniform(0.7, 1.4)))
    return found


def _cards(count: int) -> tuple[Card, ...]:
    found: list[Card] = []
    for number in range(count):
        # Spread evenly, so that the first few cards are a farm like the whole.
        place, share = (number * 0.618034) % 1.0, 0.0
        for part, kind, speed, size in _CARDS:
            share += part
            if place < share or kind == _CARDS[-1][1]:
                found.append(Card(f"card{number}", kind, speed, int(size * GIB), PLACES))
                break
    return tuple(found)


def _wanted(random: Random, models: Models) -> tuple[Checkpoint, float]:
    weights = [1.0 / (number + 1) ** _SKEW for number in range(len(models))]
    return random.choices(models, weights)[0]


def _sweeps(random: Random, models: Models, users: range, jobs: int) -> list[Batch]:
    """Batches at times from 0 to 1."""
    sizes = [random.lognormvariate(0.0, 1.0) for _ in range(3 * len(users))]
    scale = jobs * (1 - _INTERACTIVE) / sum(sizes)
    found = []
    for number, size in enumerate(sizes):
        background = random.random() < _BACKGROUND
        found.append(
            Batch(
                max(0.0, 2 * random.random() - 1),
                users[number % len(users)],
                PRIORITIES["background" if background else "normal"],
                _parts(random, models, max(1, round(size * scale))),
            )
        )
    return found


def _parts(random: Random, models: Models, jobs: int) -> tuple[Part, ...]:
    wanted = [_wanted(random, models)]
    if random.random() < _MIXED_SWEEP and jobs >= 4:
        four = [_wanted(random, models) for _ in range(4)]
        wanted = list({model.name: (model, seconds) for model, seconds in four}.values())
    each = -(-jobs // len(wanted))
    return tuple(Part(model.name, each, seconds, seconds / 0.05) for model, seconds in wanted)


def _interactive(
    random: Random, models: Models, users: range, *, jobs: int, span: float
) -> list[Batch]:
    likes = {user: [_wanted(random, models) for _ in range(3)] for user in users}
    found: list[Batch] = []
    made = 0
    while made < jobs * _INTERACTIVE:
        user, count = random.choice(users), random.randint(1, 4)
        model, seconds = random.choice(likes[user])
        made += count
        part = Part(model.name, count, seconds, seconds / 0.05)
        at = random.random() * span
        found.append(Batch(at, user, PRIORITIES["interactive"], (part,)))
    return found

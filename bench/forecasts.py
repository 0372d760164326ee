"""How good forecasts are: made and judged as in the dispatcher, on a farm on paper.

    .venv/bin/python bench/forecasts.py [--cards 32] [--jobs 60000] [--users 200] [--load 0.7]

The simulator runs batches of the mixed trace with the farm's own placement. They come at random
times, as many as keep the cards busy for ``--load`` of the time. Each batch is forecast when it
comes, with costs as they are learnt and errors as they are known by then; then it is seen when it
ends. What comes later is not foreseen: neither urgent batches nor those of others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from farm.dispatch.forecast import BANDS, Cards, TrackRecord, Work, finish_times  # noqa: E402
from farm.dispatch.simulator.generator import mixed  # noqa: E402
from farm.dispatch.simulator.policies import ours  # noqa: E402
from farm.dispatch.simulator.trace import Batch, Trace  # noqa: E402
from farm.dispatch.simulator.world import World  # noqa: E402


class Said(NamedTuple):
    """A forecast: when it was made, what the model thought, what was said; seconds."""

    at: float
    model: float
    p50: float
    p90: float


class Foreseen(World):
    """A world in which every batch is forecast when it comes."""

    said: dict[int, Said]

    def run(self) -> None:  # type: ignore[override]
        self.said, self.took = {}, dict[int, float]()
        self._all = dict(enumerate(self._trace.batches, 1))
        self._undone = dict[int, int]()
        speeds = [card.speed for card in self._trace.cards]
        self._farm = Cards(len(speeds), sum(speeds))
        super().run()

    def _arrive(self, id: int, batch: Batch) -> None:
        super()._arrive(id, batch)
        self._undone[id] = sum(part.jobs for part in batch.parts)
        weights = {user.id: user.weight for user in self._trace.users.values()}
        model = finish_times(self._works(), weights, self._farm)[id]
        past = [(self.said[done].model, took) for done, took in self.took.items()][::-1]
        eta = TrackRecord(past).eta(model)
        self.said[id] = Said(batch.at, model, eta.p50, eta.p90)

    def _works(self) -> Iterator[Work]:
        costs = self._accounts.costs
        warm = {name for card in self._workers for name in card.warm}
        for id, jobs in self._undone.items():
            parts = self._all[id].parts
            whole = sum(costs.estimate(part.checkpoint, part.size) * part.jobs for part in parts)
            loads = sum(
                costs.load(part.checkpoint) for part in parts if part.checkpoint not in warm
            )
            seconds = whole * jobs / sum(part.jobs for part in parts) + loads
            load = max(costs.load(part.checkpoint) for part in parts)
            yield Work(id, self._all[id].user, self._all[id].priority, seconds, jobs, load)

    def _end(self, now: float, number: int) -> None:
        running = self._workers[number].running
        assert running
        id = running.job.batch
        super()._end(now, number)
        self._undone[id] -= 1
        if not self._undone[id]:
            del self._undone[id]
            self.took[id] = now - self.said[id].at


def steady(trace: Trace, load: float, seed: int) -> Trace:
    """The same batches at random times, so that the cards have work for that part of them."""
    work = sum(part.seconds * part.jobs for batch in trace.batches for part in batch.parts)
    span = work / sum(card.speed for card in trace.cards) / load
    random = Random(seed)
    moved = [replace(batch, at=random.random() * span) for batch in trace.batches]
    return replace(trace, batches=tuple(sorted(moved, key=lambda batch: batch.at)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cards", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=60_000)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--checkpoints", type=int, default=12)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    trace = mixed(
        cards=told.cards,
        jobs=told.jobs,
        users=told.users,
        checkpoints=told.checkpoints,
        seed=told.seed,
    )
    world = Foreseen(steady(trace, told.load, told.seed), ours)
    world.run()
    print(f"{len(world.took)} batches of {len(trace.batches)} ended")
    edges = [0.0, *BANDS, float("inf")]
    print(f"{'thought':>14} {'batches':>8} {'error':>8} {'miss':>8} {'within p90':>11}")
    for low, high in pairwise(edges):
        judged = [(world.said[id], took) for id, took in world.took.items()]
        _row(f"{low:g} to {high:g} s", [each for each in judged if low <= each[0].model < high])
    _row("all", [(world.said[id], took) for id, took in world.took.items()])


def _row(name: str, judged: list[tuple[Said, float]]) -> None:
    if not judged:
        return
    errors = [took / said.p50 - 1 for said, took in judged]
    within = sum(took <= said.p90 for said, took in judged) / len(judged)
    miss = median(map(abs, errors))
    print(f"{name:>14} {len(judged):>8} {median(errors):>+8.0%} {miss:>8.0%} {within:>11.0%}")


if __name__ == "__main__":
    main()

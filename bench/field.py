"""Farm and its peers at the same work, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from bench import card
from bench.bound import Bound
from bench.contenders import Farm, Pipeline
from bench.failures import told_if_it_fails
from bench.workloads import Workload
from farm.worker.engine import Counters


class Took(NamedTuple):
    """Seconds of the clock, and of processors: of all threads of this process."""

    clock: float
    cpu: float


def timed(work: Callable[[], object], device: torch.device) -> Took:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began, spent = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return Took(time.perf_counter() - began, time.process_time() - spent)


@dataclass
class Field:
    """Farm and its peers on one checkpoint.

    Attributes:
        limit: operations a second that the card has at most; None where there is none.
        failed: names of what failed.
    """

    farm: Farm
    peers: dict[str, Pipeline]
    repeats: int
    limit: float | None
    failed: list[str]
    bound: Bound | None = None

    def compare(self, work: Workload) -> None:
        """One workload by everybody, in turn."""
        ready = self._ready(work)
        methods = {name: method for name, (method, _) in ready.items()}
        took: dict[str, list[Took]] = {name: [] for name in methods}
        before = self.farm.engine.counters
        for _ in range(self.repeats):
            for name, method in methods.items():
                took[name].append(timed(method, self.farm.device))
        self._print_forwards(work, before, sum(each.clock for each in took["farm"]))
        for name, each in took.items():
            rounds = list(zip(took["farm"], each, strict=True))
            faster = statistics.median(other.clock / own.clock for own, other in rounds)
            lighter = statistics.median(other.cpu / own.cpu for own, other in rounds)
            seconds = [one.clock for one in each]
            spread = f"{min(seconds):.2f}-{max(seconds):.2f} s, first {ready[name][1]:.1f}"
            print(
                f"  {name:9} {len(work.jobs) / statistics.median(seconds):8.3f} images/s  "
                f"({spread:>27})   farm is {faster:.2f}x, {lighter:.2f}x by CPU seconds"
                + self._share(work, statistics.median(seconds))
            )

    def _ready(self, work: Workload) -> dict[str, tuple[Callable[[], object], float]]:
        """Who can do it, with the seconds of their first call."""
        loop, device = self.peers["loop"], self.farm.device
        methods: dict[str, Callable[[], object]] = {
            name: lambda peer=peer: peer.loop(work.jobs) for name, peer in self.peers.items()
        }
        if work.alike and len(work.jobs) > 1:
            methods["batch"] = lambda: loop.batch(work.jobs)
        if bound := self.bound:
            methods["bound"] = lambda: bound.render(work.jobs)
        farm = partial(self.farm.render, work.jobs)
        ready: dict[str, tuple[Callable[[], object], float]] = {}
        ready["farm"] = farm, timed(farm, device).clock
        for name, method in methods.items():
            with told_if_it_fails(f"{work.name}, {name}", self.failed):
                ready[name] = method, timed(method, device).clock
        return ready

    def _print_forwards(self, work: Workload, before: Counters, seconds: float) -> None:
        after = self.farm.engine.counters
        forwards = after.forwards - before.forwards
        rows = (after.rows - before.rows) / max(forwards, 1)
        alone = sum(each.steps for job in work.jobs for each in job.passes)
        busy = (after.busy_seconds - before.busy_seconds) / seconds
        print(
            f"\n{work.name}: {forwards / self.repeats:.0f} forwards of {rows:.1f} rows; "
            f"a loop takes {alone}; busy {busy:.0%}"
        )

    def _share(self, work: Workload, seconds: float) -> str:
        if self.limit is None:
            return ""
        done = sum(card.operations(job, work.family) for job in work.jobs)
        return f"   {done / seconds / self.limit:6.1%} of peak"

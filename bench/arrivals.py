"""Jobs that arrive one by one, and how long they wait."""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench.contenders import Farm, Pipeline
from farm.spec.job import JobSpec

LOADS = (0.5, 0.8, 0.95)


def stream(
    farm: Farm, peers: Mapping[str, Pipeline], specs: Sequence[JobSpec], rounds: int
) -> None:
    """Jobs that arrive at random, at shares of what the engine can do.

    Each round draws arrivals of its own, the same for Farm and its peers, who serve first come,
    first served.
    """
    for peer in peers.values():
        peer.loop(list({(spec.size, spec.cfg_scale == 1): spec for spec in specs}.values()))
    farm.render(specs)
    capacity = len(specs) / statistics.median(_took(farm, specs) for _ in range(rounds))
    print(f"\nstream of {len(specs)} mixed jobs, Poisson arrivals, {rounds} rounds; ", end="")
    print(f"all at once {capacity:.2f} images/s")
    print("  load   by         images/s      p50      p95   rows a forward   busy")
    draw = random.Random(2)
    for load in LOADS:
        runs: dict[str, list[_Run]] = defaultdict(list)
        before = farm.engine.counters
        for _ in range(rounds):
            pauses = [draw.expovariate(load * capacity) for _ in specs]
            runs["farm"].append(_arrivals(specs, pauses, farm.submit))
            for name, peer in peers.items():
                with ThreadPoolExecutor(1) as queue:
                    serve = partial(queue.submit, lambda spec, peer=peer: peer.loop([spec]))
                    runs[name].append(_arrivals(specs, pauses, serve))
        after = farm.engine.counters
        rows = (after.rows - before.rows) / (after.forwards - before.forwards)
        busy = (after.busy_seconds - before.busy_seconds) / sum(run.took for run in runs["farm"])
        for name, each in runs.items():
            _print(load, name, each, f"{rows:13.1f}   {busy:6.0%}" if name == "farm" else "")


def _took(farm: Farm, specs: Sequence[JobSpec]) -> float:
    began = time.perf_counter()
    farm.render(specs)
    return time.perf_counter() - began


@dataclass
class _Run:
    """Seconds from arrival to image of each job, and from the first arrival to the last image."""

    waits: list[float]
    took: float


def _arrivals(
    specs: Sequence[JobSpec], pauses: Sequence[float], submit: Callable[[JobSpec], Any]
) -> _Run:
    waits: list[float] = []
    pending = []
    began = time.perf_counter()
    for spec, pause in zip(specs, pauses, strict=True):
        time.sleep(pause)
        arrived, future = time.perf_counter(), submit(spec)
        future.add_done_callback(
            lambda _, arrived=arrived: waits.append(time.perf_counter() - arrived)
        )
        pending.append(future)
    for future in pending:
        future.result()
    return _Run(waits, time.perf_counter() - began)


def _print(load: float, who: str, runs: Sequence[_Run], rest: str) -> None:
    waits = [wait for run in runs for wait in run.waits]
    speed = len(waits) / sum(run.took for run in runs)
    cuts = statistics.quantiles(waits, n=20)
    print(f"  {load:4.0%}   {who:8}   {speed:8.2f}   {cuts[9]:6.2f}   {cuts[18]:6.2f}{rest}")

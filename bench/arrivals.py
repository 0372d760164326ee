"""Jobs that arrive one by one, and how long they wait."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bench.contenders import Farm, Pipeline
from farm.spec.job import JobSpec


def stream(farm: Farm, peer: Pipeline, specs: Sequence[JobSpec], count: int) -> None:
    """Jobs that arrive at random, at shares of what the engine can do."""
    draw = random.Random(2)
    several = [draw.choice(specs).model_copy(update={"seed": n}) for n in range(count)]
    began = time.perf_counter()
    farm.render(several)
    capacity = count / (time.perf_counter() - began)
    print(f"\nstream of {count} mixed jobs, Poisson arrivals; all at once {capacity:.2f} images/s")
    print("  load   by      images/s      p50      p95   rows a forward   busy")
    for load in (0.5, 0.8, 0.95):
        pauses = [draw.expovariate(load * capacity) for _ in several]
        before = farm.engine.counters
        waits, took = _arrivals(several, pauses, farm.submit)
        after = farm.engine.counters
        rows = (after.rows - before.rows) / (after.forwards - before.forwards)
        busy = (after.busy_seconds - before.busy_seconds) / took
        _print_stream(load, "farm", waits, took, f"{rows:13.1f}   {busy:6.0%}")
        queue = _Queue(peer)
        waits, took = _arrivals(several, pauses, queue.submit)
        queue.stop()
        _print_stream(load, "loop", waits, took, "")


def _arrivals(
    specs: Sequence[JobSpec], pauses: Sequence[float], submit: Callable[[JobSpec], Any]
) -> tuple[list[float], float]:
    """Seconds from arrival to image of each, and of all."""
    waits: list[float] = []
    pending = []
    began = time.perf_counter()
    for spec, pause in zip(specs, pauses, strict=True):
        time.sleep(pause)
        future, arrived = submit(spec), time.perf_counter()
        future.add_done_callback(
            lambda _, arrived=arrived: waits.append(time.perf_counter() - arrived)
        )
        pending.append(future)
    for future in pending:
        future.result()
    return waits, time.perf_counter() - began


class _Queue:
    """A pipeline behind a queue: one image after the other, first come, first served."""

    def __init__(self, peer: Pipeline) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._peer = peer

    def submit(self, spec: JobSpec) -> Any:
        return self._pool.submit(self._peer.loop, [spec])

    def stop(self) -> None:
        self._pool.shutdown()


def _print_stream(load: float, who: str, waits: list[float], took: float, rest: str) -> None:
    cuts = statistics.quantiles(waits, n=20)
    print(
        f"  {load:4.0%}   {who}   {len(waits) / took:9.2f}   {cuts[9]:6.2f}   {cuts[18]:6.2f}{rest}"
    )

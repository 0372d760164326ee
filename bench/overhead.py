"""What the farm costs: its throughput against the bare engine, its memory, its latencies.

    .venv/bin/python bench/overhead.py [--jobs 200] [--rounds 3]

Starts a one-machine farm in a temporary folder. In each round the same jobs run through the whole
path (HTTP to stored image) and in this process by the engine alone: half of them through the farm,
half alone, the other half alone and the last through the farm, so that a steady drift of the
machine's speed cancels out.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
import torch

from farm.client import Farm
from farm.embedded import home as homes
from farm.spec.batch import BatchRequest, freeze
from farm.worker.engine import Engine
from farm.worker.memory import profiles
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan

REQUEST = {"prompt": "a red apple", "checkpoint": "demo", "seed": 1}


class BareEngine:
    """The engine in this process, with the profile that a worker would choose."""

    def __init__(self) -> None:
        device = torch.device("cpu")
        files = scan([builtin_folder()])
        profile = profiles.choose("cpu", psutil.virtual_memory().total)
        self._defaults = {file.name: dict(file.defaults) for file in files}
        self._engine = Engine(ModelCache(files, profile, device), profile, device)
        self._engine.start()

    def seconds(self, jobs: int) -> float:
        spec = freeze(BatchRequest(**REQUEST, count=jobs), self._defaults)
        began = time.perf_counter()
        waiting = [self._engine.submit(str(ord), spec.job(ord)) for ord in range(jobs)]
        for future in waiting:
            future.result()
        return time.perf_counter() - began

    def stop(self) -> None:
        self._engine.stop()


class OneMachine:
    """``farm up`` in a folder of its own."""

    def __init__(self, home: Path, port: int) -> None:
        self._home = home
        self._command = [sys.executable, "-m", "farm.cli.main", "up"]
        self._command += ["--home", str(home), "--port", str(port), "--workers", "cpu"]

    def start(self) -> float:
        """Seconds until it is ready."""
        began = time.perf_counter()
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        while homes.announced(self._home) is None:
            if self._process.poll() is not None:
                sys.exit("the farm did not start")
            time.sleep(0.02)
        took = time.perf_counter() - began
        self.url = homes.announced(self._home)[0]
        return took

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def memory(self) -> dict[str, float]:
        """Proportional set size in MB by kind of process: shared pages are counted once."""
        found: dict[str, float] = {}
        for process in [psutil.Process(self._process.pid), *self._children()]:
            try:
                name = _kind(process.cmdline())
                found[name] = found.get(name, 0.0) + process.memory_full_info().pss / 1e6
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)


def _kind(command: list[str]) -> str:
    text = " ".join(command)
    for name in ("worker", "api", "dispatch", "valkey", "postgres"):
        if f"farm.{name}" in text or name in command[0]:
            return name
    return "postgres" if "postgres" in text else "supervisor"


def farm_seconds(farm: Farm, jobs: int) -> float:
    began = time.perf_counter()
    batch = farm.submit(**REQUEST, count=jobs)
    batch.wait()
    took = time.perf_counter() - began
    if batch.counts["succeeded"] != jobs:
        sys.exit(f"not all succeeded: {batch.counts}")
    return took


def submit_seconds(url: str, requests: int) -> list[float]:
    """Seconds of each of ``requests`` single-job submits, one after the other; all cancelled."""
    took, ids = [], []
    with httpx.Client(base_url=url) as client:
        for _ in range(requests):
            began = time.perf_counter()
            answer = client.post("/v1/batches", json=REQUEST)
            took.append(time.perf_counter() - began)
            ids.append(answer.raise_for_status().json()["id"])
        for batch in ids:
            client.post(f"/v1/batches/{batch}:cancel").raise_for_status()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--submits", type=int, default=300)
    parser.add_argument("--port", type=int, default=7971)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp") as folder:
        home = Path(folder) / "home"
        machine = OneMachine(home, told.port)
        first = machine.start()
        machine.stop()
        second = machine.start()
        farm, bare = Farm(machine.url), BareEngine()
        farm_seconds(farm, 16)
        bare.seconds(16)
        print(f"| round | farm, images/s | engine alone, images/s | ratio |\n|{'---|' * 4}")
        ratios = []
        for number in range(1, told.rounds + 1):
            half = told.jobs // 2
            first_half = farm_seconds(farm, half)
            alone = told.jobs / (bare.seconds(half) + bare.seconds(told.jobs - half))
            whole = told.jobs / (first_half + farm_seconds(farm, told.jobs - half))
            ratios.append(whole / alone)
            print(f"| {number} | {whole:.2f} | {alone:.2f} | {whole / alone:.3f} |", flush=True)
        print(f"| median | | | {statistics.median(ratios):.3f} |\n")
        bare.stop()
        memory = machine.memory()
        print("| process | memory, MB (PSS) |\n|---|---|")
        for name, megabytes in sorted(memory.items()):
            print(f"| {name} | {megabytes:.0f} |")
        print(f"| all but the worker | {sum(memory.values()) - memory['worker']:.0f} |\n")
        took = sorted(submit_seconds(machine.url, told.submits))
        print("| what | measured |\n|---|---|")
        print(f"| submit one job, p50 | {1000 * took[len(took) // 2]:.1f} ms |")
        print(f"| submit one job, p99 | {1000 * took[int(len(took) * 0.99)]:.1f} ms |")
        print(f"| farm up to ready, first start | {first:.1f} s |")
        print(f"| farm up to ready, second start | {second:.1f} s |")
        farm.close()
        machine.stop()


if __name__ == "__main__":
    main()

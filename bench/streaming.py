"""What a million explicit jobs cost that are sent one a line.

    .venv/bin/python bench/streaming.py [--jobs 1000000]

Starts a Postgres of its own and the API as a process, and sends the lines as Farm's client does.
Wall time is the client's, from the first line to the answer; the API's memory is its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from bench.postgres import cpu, postgres  # noqa: E402
from farm.client import Farm  # noqa: E402
from farm.errors import Unavailable  # noqa: E402

PORT = 17931


def lines(jobs: int) -> Iterator[bytes]:
    """Jobs that differ in prompt, seed and steps, as a program would write them."""
    for number in range(jobs):
        job = {
            "prompt": f"a (red:1.2) apple number {number} on a table, highly detailed, sharp focus",
            "negative_prompt": "blurry, dark",
            "seed": number,
            "steps": 10 + number % 20,
            "sampler": "DPM++ 2M",
            "width": 512,
            "height": 768,
        }
        yield json.dumps(job).encode() + b"\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1_000_000)
    jobs = parser.parse_args().jobs
    with (
        tempfile.TemporaryDirectory(prefix="farm-bench-", dir="/tmp") as folder,
        postgres(Path(folder)) as (url, server),
    ):
        environment = {
            **os.environ,
            "FARM_DATABASE_URL": url,
            "FARM_BROKER_URL": "redis://127.0.0.1:1/0",
            "FARM_STORAGE_URL": f"{folder}/images",
            "FARM_PORT": str(PORT),
            "FARM_LOCAL": "true",
            "FARM_LOG_LEVEL": "WARNING",
        }
        api = subprocess.Popen([sys.executable, "-m", "farm.api"], env=environment)
        try:
            measure(psutil.Process(api.pid), server, jobs)
        finally:
            api.terminate()
            api.wait()


def measure(api: psutil.Process, server: psutil.Process, jobs: int) -> None:
    farm = Farm(f"http://127.0.0.1:{PORT}")
    _wait_for(farm)
    resting, before, took = _peak(api), cpu([api]), cpu([server])
    began = time.perf_counter()
    batch = farm.submit_lines(lambda: lines(jobs))
    wall = time.perf_counter() - began
    assert batch.total == jobs
    print(f"{jobs} jobs, {sum(map(len, lines(1000))) / 1000:.0f} bytes a line")
    print(f"  wall        {wall:7.1f} s, {jobs / wall:.0f} jobs/s")
    print(f"  API         {cpu([api]) - before:7.1f} s of CPU")
    print(f"  Postgres    {cpu([server]) - took:7.1f} s of CPU")
    print(f"  API memory  {_peak(api) / 2**20:7.0f} MiB at the peak, {resting / 2**20:.0f} at rest")


def _wait_for(farm: Farm) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            farm.workers()
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise


def _peak(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmHWM" in line)


if __name__ == "__main__":
    main()

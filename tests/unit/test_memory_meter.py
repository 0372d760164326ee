"""The memory line, as webui prints it."""

from __future__ import annotations

import psutil
import pytest
import torch

from farm.worker.memory.meter import Meter
from farm.worker.memory.reading import MemoryReading

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("reading", "line"),
    [
        (
            MemoryReading(int(3.12 * GIB), 4 * GIB, 5 * GIB, 24 * GIB),
            "A: 3.12 GB, R: 4.00 GB, Sys: 5.0/24 GB (20.8%)",
        ),
        # 24 268 MiB is what a 3090 has; every size is rounded up to a MiB first.
        (
            MemoryReading(1, MIB, MIB + 1, 24_268 * MIB),
            "A: 0.00 GB, R: 0.00 GB, Sys: 0.0/23.6992 GB (0.0%)",
        ),
        (MemoryReading(0, 0, 0, 0), "A: 0.00 GB, R: 0.00 GB, Sys: 0.0/0 GB (0.0%)"),
        (
            MemoryReading(6 * MIB - 1, 0, 12 * GIB, 12 * GIB),
            "A: 0.01 GB, R: 0.00 GB, Sys: 12.0/12 GB (100.0%)",
        ),
    ],
)
def test_the_line(reading: MemoryReading, line: str) -> None:
    assert str(reading) == line


def test_a_cpu_reads_the_process_and_the_machine() -> None:
    meter = Meter(torch.device("cpu"))
    meter.reset()
    resident = psutil.Process().memory_info().rss
    reading = meter.sample()
    assert resident <= reading.active < psutil.virtual_memory().total
    assert reading.active == reading.reserved
    assert 0 < reading.system_used <= reading.system_total == psutil.virtual_memory().total

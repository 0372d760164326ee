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
    # The kernel counts in batches, so the peak may lie a little behind.
    assert 0.9 * resident <= reading.active < psutil.virtual_memory().total
    assert reading.active == reading.reserved
    assert 0 < reading.system_used <= reading.system_total == psutil.virtual_memory().total


def test_what_a_block_takes_is_told_and_peaks_survive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = {"allocated_bytes.all.current": 5 * GIB, "reserved_bytes.all.current": 8 * GIB}
    peaks = {"allocated": 9 * GIB, "active": 9 * GIB, "reserved": 10 * GIB}

    def told(_: object) -> dict[str, int]:
        return stats | {f"{name}_bytes.all.peak": size for name, size in peaks.items()}

    def reset(_: object) -> None:
        peaks.update(allocated=5 * GIB, active=5 * GIB, reserved=8 * GIB)

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_stats", told)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (15 * GIB, 24 * GIB))
    meter = Meter(torch.device("cuda"))
    with meter.taking() as taken:
        peaks.update(allocated=7 * GIB, active=7 * GIB, reserved=8 * GIB)
    assert (taken.bytes, taken.outside) == (2 * GIB, GIB)
    reading = meter.sample()
    assert (reading.active, reading.reserved, reading.system_used) == (9 * GIB, 10 * GIB, 9 * GIB)
    meter.reset()
    assert meter.sample().active == 5 * GIB


def test_on_a_cpu_a_block_tells_nothing() -> None:
    with Meter(torch.device("cpu")).taking() as taken:
        torch.ones(1000)
    assert (taken.bytes, taken.outside) == (None, None)

"""Memory in use on one device, as webui prints it."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass

import psutil
import torch

MIB = 2**20
RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class MemoryReading:
    """Bytes at one moment.

    Attributes:
        active: peak held by live tensors since the last reset; on a CPU the peak resident set
            of this process since it began.
        reserved: peak taken from the device by torch; on a CPU the same as ``active``.
        system_used, system_total: the whole device, or the whole machine for a CPU.
    """

    active: int
    reserved: int
    system_used: int
    system_total: int

    def __str__(self) -> str:
        """``A: 3.12 GB, R: 4.00 GB, Sys: 5.0/24 GB (20.8%)``; a GB is 2**30 bytes here."""
        active, reserved, used, total = (
            math.ceil(size / MIB)
            for size in (self.active, self.reserved, self.system_used, self.system_total)
        )
        return (
            f"A: {active / 1024:.2f} GB, R: {reserved / 1024:.2f} GB, "
            f"Sys: {used / 1024:.1f}/{total / 1024:g} GB ({used / max(total, 1):.1%})"
        )


class Meter:
    """Reads the memory of one device; cheap enough to call at every job."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        """Start the peaks anew. A process's peak resident set cannot be, so not on a CPU."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def sample(self) -> MemoryReading:
        """The peaks since the last reset, and the device as it is now."""
        if self._device.type == "cuda":
            return self._card()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        machine = psutil.virtual_memory()
        return MemoryReading(peak, peak, machine.total - machine.available, machine.total)

    def _card(self) -> MemoryReading:
        stats = torch.cuda.memory_stats(self._device)
        free, total = torch.cuda.mem_get_info(self._device)
        return MemoryReading(
            active=stats["active_bytes.all.peak"],
            reserved=stats["reserved_bytes.all.peak"],
            system_used=total - free,
            system_total=total,
        )

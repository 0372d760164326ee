"""Memory in use on one device, as webui prints it."""

from __future__ import annotations

import resource
import sys

import psutil
import torch

from farm.worker.memory.reading import MemoryReading

RSS_UNIT = 1 if sys.platform == "darwin" else 1024


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

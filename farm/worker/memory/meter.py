"""Memory in use on one device, as webui prints it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from farm.worker.memory.reading import MemoryReading

RSS_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass
class Taken:
    """What the calls in a block took. None until it has ended well, and on a CPU, where the
    growth of a process says nothing of the kind: allocators keep what they once had.

    Attributes:
        bytes: peak of live tensors beyond what was held before the block.
        outside: of the card, what is taken past torch: by the context of CUDA, and by others.
    """

    bytes: int | None = None
    outside: int | None = None


class Meter:
    """Reads the memory of one device; cheap enough to call at every job.

    The peaks of a card are those of its whole process, so there should be one meter that resets.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._active = self._reserved = 0
        if device.type == "cuda":
            # Before that torch keeps no statistics at all.
            torch.cuda.init()  # type: ignore[no-untyped-call]

    def reset(self) -> None:
        """Start the peaks anew. A process's peak resident set cannot be, so not on a CPU."""
        self._active = self._reserved = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def sample(self) -> MemoryReading:
        """The peaks since the last reset, and the device as it is now."""
        if self._device.type == "cuda":
            return self._card()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        machine = psutil.virtual_memory()
        return MemoryReading(peak, peak, machine.total - machine.available, machine.total)

    @contextmanager
    def taking(self) -> Iterator[Taken]:
        """Tell what the block takes. The allocator books what the host asks for, so nobody waits
        for the card, and the peaks that :meth:`sample` tells of are none the lower."""
        taken = Taken()
        if self._device.type != "cuda":
            yield taken
            return
        before = self._stats()
        self._active, self._reserved = _peaks(before, self._active, self._reserved)
        torch.cuda.reset_peak_memory_stats(self._device)
        yield taken
        after = self._stats()
        free, total = torch.cuda.mem_get_info(self._device)
        taken.bytes = after["allocated_bytes.all.peak"] - before["allocated_bytes.all.current"]
        taken.outside = total - free - after["reserved_bytes.all.current"]

    def _card(self) -> MemoryReading:
        active, reserved = _peaks(self._stats(), self._active, self._reserved)
        free, total = torch.cuda.mem_get_info(self._device)
        return MemoryReading(active, reserved, system_used=total - free, system_total=total)

    def _stats(self) -> Mapping[str, int]:
        return torch.cuda.memory_stats(self._device)


def _peaks(stats: Mapping[str, int], active: int, reserved: int) -> tuple[int, int]:
    return (
        max(active, stats["active_bytes.all.peak"]),
        max(reserved, stats["reserved_bytes.all.peak"]),
    )

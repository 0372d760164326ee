"""What a cache of checkpoints has done so far."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class CacheStatistics:
    """Counts since the cache was made.

    Attributes:
        hits: uses of a checkpoint that was on the device.
        disk_loads, disk_seconds: reads from disk, and what they took in all.
        host_loads, host_seconds: moves from host memory to the device.
        prefetches, prefetch_seconds: reads from disk into host memory, ahead of their use.
        evictions: checkpoints that left the device.
    """

    hits: int = 0
    disk_loads: int = 0
    disk_seconds: float = 0.0
    host_loads: int = 0
    host_seconds: float = 0.0
    prefetches: int = 0
    prefetch_seconds: float = 0.0
    evictions: int = 0

    def plus(self, **more: float) -> CacheStatistics:
        """These, and so many more of some."""
        return replace(self, **{name: getattr(self, name) + more[name] for name in more})

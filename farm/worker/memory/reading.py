"""What a look at a device's memory finds. Without torch, as all that passes it on is."""

from __future__ import annotations

import math
from dataclasses import dataclass

MIB = 2**20


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

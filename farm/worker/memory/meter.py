"""Memory in use on one device, as webui prints it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MemoryReading:
    """Bytes at one moment.

    Attributes:
        active: peak held by live tensors since the last reset; on a CPU the peak resident set.
        reserved: peak taken from the device by torch; on a CPU the same as ``active``.
        system_used, system_total: the whole device, or the whole machine for a CPU.
    """

    active: int
    reserved: int
    system_used: int
    system_total: int


class Meter:
    """Reads the memory of one device; cheap enough to call at every job."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        """Start the peaks anew."""
        raise NotImplementedError

    def sample(self) -> MemoryReading:
        """The peaks since the last reset and the device as it is now."""
        raise NotImplementedError

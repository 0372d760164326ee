"""What lies where in a card's memory, for https://pytorch.org/memory_viz.

In torch's own format, which torch pickles. Nothing here ever reads one.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from farm.errors import Conflict

log = logging.getLogger(__name__)

ENTRIES = 50_000
"""Allocations that a record holds at most; each is a few KB with its stack."""
PAUSE = 60.0
"""Seconds after a snapshot in which no other is made because memory ran out."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot, and when on the monotonic clock it was made."""

    at: float
    content: bytes


class Snapshots:
    """Makes snapshots of one device: when told, and when its memory runs out.

    Attributes:
        exhausted: of the last time that memory ran out; None while it never did.
    """

    def __init__(
        self, device: torch.device, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._device = device
        self._clock = clock
        self.exhausted: Snapshot | None = None
        if device.type == "cuda":
            torch._C._cuda_attach_out_of_memory_observer(self.ran_out)  # type: ignore[attr-defined]

    def take(self, *, seconds: float = 0.0) -> bytes:
        """A snapshot of now.

        Args:
            seconds: to wait for it, while it is recorded who allocates and frees what.

        Raises:
            Conflict: the device is no GPU.
        """
        if self._device.type != "cuda":
            raise Conflict(
                "This worker runs on the CPU, whose memory torch keeps no account of.",
                field="worker",
                remedy="Ask a worker that holds a GPU.",
            )
        if not seconds:
            return _snapshot()
        torch.cuda.memory._record_memory_history(max_entries=ENTRIES, stacks="python")
        try:
            time.sleep(seconds)
            return _snapshot()
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)

    def ran_out(self, _: int, wanted: int, total: int, free: int) -> None:
        """Called by the allocator before it raises, with everything still in its place."""
        if self.exhausted and self._clock() - self.exhausted.at < PAUSE:
            return
        log.warning("memory ran out: %d bytes wanted, %d of %d free", wanted, free, total)
        try:
            self.exhausted = Snapshot(self._clock(), _snapshot())
        except Exception:  # in the middle of another error, which is the one that counts
            log.exception("no snapshot of the memory that ran out")


def _snapshot() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot.pickle"
        torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
        return path.read_bytes()

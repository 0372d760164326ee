"""What the C library keeps of the host's memory in a process that computes on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names that glibc's ``malloc.h`` has for them."""
BLOCK, TOP = 64 * 2**20, 256 * 2**20


class Heap:
    """Keeps what steps let go of for the next ones.

    By itself glibc gives back to the machine what is free at the end of a heap, and blocks above
    32 MiB, so that each step has it cleared anew, page by page. From now on, and in all of the
    process, it keeps blocks up to ``BLOCK``, and up to ``TOP`` at the end of a heap. Weights go
    back all the same: when a checkpoint has come or gone, all that is free does.

    Other C libraries are left as they are.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        self._trim = getattr(library, "malloc_trim", None)
        self._seen: frozenset[str] = frozenset()
        if set_option := getattr(library, "mallopt", None):
            set_option(M_MMAP_THRESHOLD, BLOCK)
            set_option(M_TRIM_THRESHOLD, TOP)

    def tidy(self, resident: Iterable[str]) -> None:
        """Give back what is free, where these are other checkpoints than the last time."""
        here = frozenset(resident)
        if here != self._seen and self._trim:
            self._trim(0)
        self._seen = here

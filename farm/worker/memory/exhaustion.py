"""Telling that memory ran out from all else that can go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SAID = ("DefaultCPUAllocator", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""By the CPU's allocator, by cuBLAS, and by cuDNN."""


class HostExhausted(MemoryError):
    """It was the host's memory that ran out, in work that no device takes part in."""


@contextmanager
def on_host(what: str) -> Iterator[None]:
    """In the block the host alone makes something; raises :class:`HostExhausted` where it has no
    memory for that."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise HostExhausted(f"no memory for {what}") from error


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no memory left.

    On a CPU torch raises a plain RuntimeError that only its text tells apart, and so it is with
    libraries that take memory from CUDA past torch.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):
        return "out of memory" in str(error)
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _SAID)

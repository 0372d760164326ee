"""Telling that memory ran out from all else that can go wrong."""

from __future__ import annotations

import torch

_SAID = ("DefaultCPUAllocator", "ALLOC_FAILED", "ALLOCATION_FAILED")
"""By the CPU's allocator, by cuBLAS, and by cuDNN."""


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

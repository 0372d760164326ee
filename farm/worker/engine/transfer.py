"""Copies between host and device that nobody waits for."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device.

    A copy out of ordinary memory would make the host wait until the device gets to it; one out
    of pinned memory is only queued.
    """
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, whole once the work queued on the device so far is done."""
    if tensor.device.type != "cuda":
        return tensor
    home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return home.copy_(tensor, non_blocking=True)

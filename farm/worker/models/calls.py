"""How the calls of a model are measured."""

from __future__ import annotations

import torch
from torch import nn

from farm.spec.measurement import Call, Work


def call_of(work: Work, family: str, module: nn.Module, mode: str) -> Call:
    """A call of ``module``; of no pixels and one row."""
    weights = list(module.parameters())
    numbers = sum(weight.numel() for weight in weights)
    return Call(work, family, numbers, name_of(weights[0].dtype), mode, pixels=0, rows=1)


def name_of(dtype: torch.dtype) -> str:
    """Such as ``float16``."""
    return str(dtype).removeprefix("torch.")

"""How the calls of a model are measured."""

from __future__ import annotations

from torch import nn

from farm.spec.measurement import Call, Work


def call_of(work: Work, family: str, module: nn.Module, mode: str) -> Call:
    """A call of ``module``; of no pixels and one row."""
    weights = list(module.parameters())
    dtype = str(weights[0].dtype).removeprefix("torch.")
    numbers = sum(weight.numel() for weight in weights)
    return Call(work, family, numbers, dtype, mode, pixels=0, rows=1)

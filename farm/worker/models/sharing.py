"""One copy of what several checkpoints hold alike: most share a VAE, many a text encoder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def shared(module: nn.Module, held: Iterable[nn.Module]) -> nn.Module:
    """The one of ``held`` that is bit for bit the same model, or else ``module`` itself.

    Nearly always the first weight tells two models apart; equal ones are read once through.
    """
    for other in held:
        if other is module or same(module, other):
            return other
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether both have one class, one config, and equal weights in one place and precision."""
    if type(one) is not type(other) or _config(one) != _config(other):
        return False
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    if ours.keys() != theirs.keys():
        return False
    return all(_equal(weight, theirs[name]) for name, weight in ours.items())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
    return alike and torch.equal(one, other)


def _config(module: Any) -> dict[str, Any]:
    config = module.config
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)

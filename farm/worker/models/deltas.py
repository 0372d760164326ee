"""What a network adds to one weight, by the formulas of those who train networks.

LoRA: https://arxiv.org/abs/2106.09685. LoHa (Hadamard products), LoKr (Kronecker products) and
the Tucker form of convolutions: https://arxiv.org/abs/2309.14859.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Factors: TypeAlias = Mapping[str, Tensor]
Formula: TypeAlias = Callable[[Factors], tuple[Tensor, int | None]]
"""Factors to their product, [out, in * kernel] or [out, in, *kernel], and their rank."""


@dataclass(frozen=True)
class Delta:
    """What is added to one weight, as the small factors it is a product of.

    Attributes:
        kind: ``lora``, ``loha`` or ``lokr``.
        alpha: the product is scaled by ``alpha / rank``; None leaves it as it is.
    """

    kind: str
    factors: Factors
    alpha: float | None = None

    @property
    def bytes(self) -> int:
        """Memory of the factors."""
        return sum(factor.nbytes for factor in self.factors.values())

    def fits(self, shape: torch.Size) -> bool:
        """Whether it can be added to a weight of this shape; costs no arithmetic."""
        bare = {name: factor.to("meta", torch.float32) for name, factor in self.factors.items()}
        try:
            product, rank = FORMULAS[self.kind](bare)
            return (product.shape[0], product.numel(), rank != 0) == (shape[0], shape.numel(), True)
        except (RuntimeError, KeyError, IndexError):  # factors that fit not even each other
            return False

    def full(self, shape: torch.Size, device: torch.device) -> Tensor:
        """The product in float32, of a shape that it :meth:`fits`."""
        wide = {name: factor.to(device, torch.float32) for name, factor in self.factors.items()}
        product, rank = FORMULAS[self.kind](wide)
        scale = 1.0 if self.alpha is None or rank is None else self.alpha / rank
        return product.reshape(shape) * scale


def _low_rank(factors: Factors) -> tuple[Tensor, int]:
    up, down = factors["up"].flatten(1), factors["down"].flatten(1)
    if "mid" in factors:
        return torch.einsum("op,pqhw,qi->oihw", up, factors["mid"], down), down.shape[0]
    return up @ down, down.shape[0]


def _hadamard(factors: Factors) -> tuple[Tensor, int]:
    return _half(factors, "1") * _half(factors, "2"), factors["w1_b"].shape[0]


def _half(factors: Factors, number: str) -> Tensor:
    a, b = factors[f"w{number}_a"], factors[f"w{number}_b"]
    if f"t{number}" in factors:
        return _tucker(factors[f"t{number}"], a, b)
    return a @ b


def _kronecker(factors: Factors) -> tuple[Tensor, int | None]:
    """Where both sides are whole there is no rank, and trainers do not scale."""
    left = factors["w1"] if "w1" in factors else factors["w1_a"] @ factors["w1_b"]
    if "w2" in factors:
        right = factors["w2"]
    elif "t2" in factors:
        right = _tucker(factors["t2"], factors["w2_a"], factors["w2_b"])
    else:
        right = factors["w2_a"] @ factors["w2_b"]
    ranks = [factors[name].shape[0] for name in ("w1_b", "w2_b") if name in factors]
    # A kernel's places count fastest, so that of flattened matrices is the flattened product.
    return torch.kron(left, right.flatten(1)), ranks[0] if ranks else None


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.einsum("ijkl,jr,ip->prkl", core, b, a)


FORMULAS: Mapping[str, Formula] = {"lora": _low_rank, "loha": _hadamard, "lokr": _kronecker}

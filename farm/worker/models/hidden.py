"""What text encoders make of chunks, and how the weights of tokens change it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hidden:
    """What one text encoder makes of chunks.

    Attributes:
        hidden: [chunks, 77, C].
        weights: 77 for each chunk.
        summary: [chunks, P]; None where the encoder makes none.
    """

    hidden: Tensor
    weights: Sequence[Sequence[float]]
    summary: Tensor | None

    def part(self, first: int, end: int) -> Hidden:
        """That of some of the chunks."""
        summary = None if self.summary is None else self.summary[first:end]
        return Hidden(self.hidden[first:end], self.weights[first:end], summary)

    def weighed(self, texts: int, emphasis: str) -> Tensor:
        """[texts, chunks of each, 77, C], times the weights of the tokens."""
        hidden = self.hidden.view(texts, -1, *self.hidden.shape[1:])
        if emphasis not in ("Original", "No norm") or all(set(row) == {1} for row in self.weights):
            return hidden
        plain = hidden.float()
        factors = queued(self.weights, hidden.device).view(*hidden.shape[:3], 1)
        weighed = plain * factors
        if emphasis == "Original":
            each_chunk = (0, 2, 3)
            before = plain.mean(each_chunk, keepdim=True)
            after = weighed.mean(each_chunk, keepdim=True)
            weighed = weighed * torch.where(after == 0, 1.0, before / after)
        return weighed.to(hidden.dtype)


def queued(numbers: Sequence[Sequence[float]], device: torch.device) -> Tensor:
    """Numbers on the device. Out of pinned memory their copy is queued behind the steps under way;
    otherwise the host would wait for those."""
    pinned = device.type == "cuda"
    return torch.tensor(numbers, pin_memory=pinned).to(device, non_blocking=pinned)

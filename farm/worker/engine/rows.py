"""The rows of one forward: which latent each row shows the model, and with which text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from farm.worker.engine.slot import Slot
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.text import TextEncoding

TOKENS_A_BLOCK = 77


class Rows:
    """Everything about a forward that stays the same while its slots do.

    First comes every slot with its prompt, then those with guidance once more with their
    negative prompt, then the first row again until the bucket is full. A text shorter than the
    others is repeated: softmax over keys that all occur equally often gives the same attention,
    where zero padding would not.

    Args:
        slots: of one checkpoint and size.
        bucket: rows of one call of the model; more rows than that take several calls.
        blocks: of 77 tokens that every text is repeated to, a multiple of each.
        device: that the slots live on.
    """

    def __init__(
        self, slots: Sequence[Slot], *, bucket: int, blocks: int, device: torch.device
    ) -> None:
        self.slots = list(slots)
        self.bucket = bucket
        self.blocks = blocks
        guided = [slot for slot in self.slots if slot.request.negative is not None]
        texts = [slot.request.prompt.value for slot in self.slots]
        texts += [slot.request.negative.value for slot in guided if slot.request.negative]
        self.count = len(texts)
        self.padding = -self.count % bucket
        texts += texts[:1] * self.padding

        places = {id(slot): place for place, slot in enumerate(self.slots)}
        negatives = {id(slot): len(self.slots) + place for place, slot in enumerate(guided)}
        sources = [*self.slots, *guided, *self.slots[:1] * self.padding]
        self._source = torch.tensor([places[id(slot)] for slot in sources], device=device)
        self._negative = torch.tensor(
            [negatives.get(id(slot), places[id(slot)]) for slot in self.slots], device=device
        )
        self._guidance = torch.tensor(
            [slot.request.cfg_scale for slot in self.slots], device=device
        ).view(-1, 1, 1, 1)
        self._tokens = torch.cat([_repeated(text, blocks) for text in texts])
        summaries = [text.pooled for text in texts if text.pooled is not None]
        self._pooled = torch.cat(summaries) if summaries else None
        self._sizes = _sizes(self.slots[0], len(texts), device) if summaries else None

    def fits(self, slots: Sequence[Slot], *, bucket: int, blocks: int) -> bool:
        """Whether these are the rows of such a forward."""
        return self.slots == slots and (self.bucket, self.blocks) == (bucket, blocks)

    def predict(self, checkpoint: Checkpoint, x: Tensor, t: Tensor) -> Tensor:
        """What the model returns for each slot, guidance applied.

        Args:
            x: [S, 4, h, w] latents of the slots, scaled for the model.
            t: [S] timesteps.
        """
        x, t = x[self._source], t[self._source]
        calls = [
            checkpoint.predict(
                x[rows],
                t[rows],
                self._tokens[rows],
                pooled=None if self._pooled is None else self._pooled[rows],
                size_ids=None if self._sizes is None else self._sizes[rows],
            )
            for rows in self._chunks()
        ]
        output = calls[0] if len(calls) == 1 else torch.cat(calls)
        # A slot without guidance is its own negative here, and its output stays what it is.
        towards, away = output[: len(self.slots)], output[self._negative]
        return away + (towards - away) * self._guidance

    @property
    def forwards(self) -> int:
        """Calls of the model that :meth:`predict` makes."""
        return (self.count + self.padding) // self.bucket

    def _chunks(self) -> list[slice]:
        return [slice(i * self.bucket, (i + 1) * self.bucket) for i in range(self.forwards)]


def _repeated(text: TextEncoding, blocks: int) -> Tensor:
    return text.tokens.repeat(1, blocks * TOKENS_A_BLOCK // text.tokens.shape[1], 1)


def _sizes(slot: Slot, rows: int, device: torch.device) -> Tensor:
    """SDXL's size numbers: the original size, no crop, and the target size."""
    height, width = float(slot.request.height), float(slot.request.width)
    numbers = torch.tensor([height, width, 0.0, 0.0, height, width], device=device)
    return numbers.expand(rows, 6)

"""The rows of one forward: which latent each row shows the model, and with which text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from farm.worker.engine.slot import Slot
from farm.worker.engine.transfer import upload
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
        rows = [(place, slot.request.prompt) for place, slot in enumerate(slots)]
        negatives = list(range(len(slots)))
        for place, slot in enumerate(slots):
            if slot.request.negative:
                negatives[place] = len(rows)
                rows.append((place, slot.request.negative))
        self.count = len(rows)
        self.padding = -self.count % bucket
        rows += rows[:1] * self.padding

        self._source = upload(torch.tensor([place for place, _ in rows]), device)
        self._negative = upload(torch.tensor(negatives), device)
        guidance = torch.tensor([slot.request.cfg_scale for slot in slots])
        self._guidance = upload(guidance.view(-1, 1, 1, 1), device)
        texts = [text.value for _, text in rows]
        sizes = upload(torch.tensor([_sizes(slots[0], text) for text in texts]), device)
        self._calls = [
            _Call(
                slice(first, first + bucket),
                texts[first : first + bucket],
                blocks,
                sizes[first : first + bucket],
            )
            for first in range(0, len(rows), bucket)
        ]

    def fits(self, slots: Sequence[Slot], *, bucket: int, blocks: int) -> bool:
        """Whether these are the rows of such a forward."""
        return self.slots == slots and (self.bucket, self.blocks) == (bucket, blocks)

    def predict(self, checkpoint: Checkpoint, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the model returns for each slot: guided, and for the negative prompt alone.

        Args:
            x: [S, 4, h, w] latents of the slots, scaled for the model.
            t: [S] timesteps.
        """
        x, t = x[self._source], t[self._source]
        outputs = [call.predict(checkpoint, x, t) for call in self._calls]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        # A slot without guidance is its own negative here, and its output stays what it is.
        towards, away = output[: len(self.slots)], output[self._negative]
        return away + (towards - away) * self._guidance, away

    @property
    def forwards(self) -> int:
        """Calls of the model that :meth:`predict` makes."""
        return len(self._calls)


class _Call:
    """One call of the model: its rows and their conditioning."""

    def __init__(
        self, rows: slice, texts: Sequence[TextEncoding], blocks: int, sizes: Tensor
    ) -> None:
        self._rows = rows
        # A row by itself has nobody to be as long as.
        repeated = (
            [_repeated(text, blocks) for text in texts] if len(texts) > 1 else [texts[0].tokens]
        )
        self._tokens = torch.cat(repeated)
        summaries = [text.pooled for text in texts if text.pooled is not None]
        self._pooled = torch.cat(summaries) if summaries else None
        self._sizes = sizes if summaries else None

    def predict(self, checkpoint: Checkpoint, x: Tensor, t: Tensor) -> Tensor:
        return checkpoint.predict(
            x[self._rows],
            t[self._rows],
            self._tokens,
            pooled=self._pooled,
            size_ids=self._sizes,
        )


def _repeated(text: TextEncoding, blocks: int) -> Tensor:
    return text.tokens.repeat(1, blocks * TOKENS_A_BLOCK // text.tokens.shape[1], 1)


def _sizes(slot: Slot, text: TextEncoding) -> list[float]:
    """SDXL's size numbers: the original size, no crop, and the target size or the score."""
    height, width = float(slot.request.height), float(slot.request.width)
    aim = [height, width] if text.score is None else [text.score]
    return [height, width, 0.0, 0.0, *aim]

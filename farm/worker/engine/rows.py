"""The rows of one forward: which latent each row shows the model, and with which text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from itertools import accumulate, count

import torch
from torch import Tensor

from farm.worker.engine.areas import together
from farm.worker.engine.guide import Mix
from farm.worker.engine.slot import Slot
from farm.worker.engine.transfer import upload
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.text import TextEncoding

TOKENS_A_BLOCK = 77


class Rows:
    """Everything about a forward that stays the same while its slots do, and what they say.

    First come the parts of every slot's prompt, then the negative prompts of those that heed one,
    then those again of edits, without the picture, then the first row until the bucket is full.
    A text shorter than the others is repeated: softmax over keys that all occur equally often
    gives the same attention, where zero padding would not.

    Args:
        slots: of one checkpoint and size.
        bucket: rows of one call of the model; more rows than that take several calls.
        blocks: of 77 tokens that every text is repeated to, a multiple of each.
        device: that the slots live on.

    Attributes:
        taken: rows of each slot.
        count: rows in all.
        padding: rows added to fill the buckets.
    """

    def __init__(
        self, slots: Sequence[Slot], *, bucket: int, blocks: int, device: torch.device
    ) -> None:
        self.slots = list(slots)
        self.bucket = bucket
        self.blocks = blocks
        self._mixes = [slot.mix for slot in slots]
        self.taken = [mix.rows for mix in self._mixes]
        self.count = sum(self.taken)
        self.padding = -self.count % bucket
        rows = [(place, text) for place, mix in enumerate(self._mixes) for text in mix.towards]
        self._sum = _Sum(self._mixes, device)
        rows += [(place, mix.away) for place, mix in enumerate(self._mixes) if mix.away]
        shown = len(rows)
        rows += [(place, mix.bare) for place, mix in enumerate(self._mixes) if mix.bare]
        hidden = range(shown, len(rows))
        rows += rows[:1] * self.padding
        self._pictures = _pictures(self.slots, [place for place, _ in rows], hidden)
        self._area = together([slot.area for slot in slots])

        self._source = upload(torch.tensor([place for place, _ in rows]), device)
        texts = [text for _, text in rows]
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
        shape = (self.bucket, self.blocks) == (bucket, blocks)
        return shape and self.slots == slots and self._mixes == [slot.mix for slot in slots]

    def predict(self, checkpoint: Checkpoint, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the model returns for each slot: guided, and for the negative prompt alone.

        Args:
            x: [S, 4, h, w] latents of the slots, scaled for the model.
            t: [S] timesteps.
        """
        x, t = x[self._source], t[self._source]
        if self._pictures is not None:
            x = torch.cat([x, self._pictures], dim=1)
        outputs = [call.predict(checkpoint, x, t) for call in self._calls]
        return self._sum(outputs[0] if len(outputs) == 1 else torch.cat(outputs))

    def masked(self, estimates: Tensor) -> Tensor:
        """Estimates of clean latents, [S, 4, h, w], where slots are made anew; elsewhere what is
        known of them."""
        return estimates if self._area is None else self._area(estimates)

    @property
    def forwards(self) -> int:
        """Calls of the model that :meth:`predict` makes."""
        return len(self._calls)


class _Sum:
    """What the outputs of a slot's rows add up to.

    A slot without a negative prompt has its first part in its place, one that edits nothing its
    negative prompt in place of that without a picture, and one with fewer parts than others its
    negative prompt once more, where it adds nothing.
    """

    def __init__(self, mixes: Sequence[Mix], device: torch.device) -> None:
        parts = [len(mix.towards) for mix in mixes]
        firsts = [end - own for end, own in zip(accumulate(parts), parts, strict=True)]
        negatives = count(sum(parts))
        away = [
            next(negatives) if mix.away else first for mix, first in zip(mixes, firsts, strict=True)
        ]
        bare = [next(negatives) if mix.bare else own for mix, own in zip(mixes, away, strict=True)]
        most = max(parts)
        towards = [
            [*range(first, first + own), *[negative] * (most - own)]
            for first, own, negative in zip(firsts, parts, away, strict=True)
        ]
        weights = [[*mix.weights, *[0.0] * (most - len(mix.weights))] for mix in mixes]
        self._away = upload(torch.tensor(away), device)
        self._towards = upload(torch.tensor(towards), device).unbind(1)
        self._weights = _column(torch.tensor(weights), device).unbind(1)
        self._scale = _column(torch.tensor([mix.scale for mix in mixes]), device)
        self._bare = None
        if any(mix.bare for mix in mixes):
            self._bare = upload(torch.tensor(bare), device)
            self._edit = _column(torch.tensor([mix.edit_scale for mix in mixes]), device)
        self._rescale = None
        if any(mix.rescale for mix in mixes):
            self._rescale = _column(torch.tensor([mix.rescale for mix in mixes]), device)

    def __call__(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """For each slot the guided output, and that of its negative prompt.

        Args:
            output: [rows, 4, h, w].
        """
        away = output[self._away]
        parts = zip(self._towards, self._weights, strict=True)
        direction = reduce(torch.add, ((output[own] - away) * weight for own, weight in parts))
        guided = self._base(output, away) + direction * self._scale
        if self._rescale is not None:
            guided = guided * self._contrast(away + direction, guided, self._rescale)
        return guided, away

    def _base(self, output: Tensor, away: Tensor) -> Tensor:
        if self._bare is None:
            return away
        bare = output[self._bare]
        return bare + (away - bare) * self._edit

    def _contrast(self, plain: Tensor, guided: Tensor, share: Tensor) -> Tensor:
        """[S, 1, 1, 1], towards the contrast that the output has without guidance.

        Lin et al. 2023 (arXiv 2305.08891), equations 15 and 16.
        """
        each = (1, 2, 3)
        ratio = plain.std(dim=each, keepdim=True) / guided.std(dim=each, keepdim=True)
        return torch.where(share > 0, share * ratio + (1 - share), 1.0)


def _pictures(
    slots: Sequence[Slot], places: Sequence[int], hidden: Collection[int]
) -> Tensor | None:
    """[rows, 4, h, w], what slots edit; zeros in the rows that are not shown it, and where there
    is nothing to edit. None where no slot edits anything."""
    known = [slot.picture for slot in slots]
    some = next((picture for picture in known if picture is not None), None)
    if some is None:
        return None
    nothing = torch.zeros_like(some)
    seen = (nothing if row in hidden else known[place] for row, place in enumerate(places))
    return torch.stack([nothing if picture is None else picture for picture in seen])


def _column(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of slots, to be multiplied with latents."""
    return upload(numbers, device)[..., None, None, None]


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

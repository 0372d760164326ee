"""Prompts to conditioning: chunks of 75 tokens, each encoded on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from farm.worker.models.tokenizer import LENGTH, clip_tokenizer

CHUNK = LENGTH - 2


@dataclass(frozen=True)
class TextEncoding:
    """A prompt as the UNet reads it.

    Attributes:
        tokens: [1, 77*k, C], one block of 77 for each chunk of the prompt.
        pooled: [1, P], the summary of the first chunk; None for SD1.5.
    """

    tokens: Tensor
    pooled: Tensor | None


class TextEncoder:
    """The one or two CLIP models of a checkpoint.

    SD1.5 has one and reads its last layer, after the final norm. SDXL has two, reads the last
    layer but one of both side by side, and the second's projected summary.

    Args:
        models: CLIP-L, and for SDXL also OpenCLIP bigG.
        device: where to compute. Models held elsewhere lend it their weights for each prompt.
    """

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        self._models = tuple(models)
        self._device = device

    def encode(self, text: str, *, negative: bool) -> TextEncoding:
        """Encode a prompt of any length; an empty negative one is all zeros on SDXL."""
        if len(self._models) == 1:
            output = self._run(self._models[0], _chunks(text, "eos"))
            return TextEncoding(_in_a_row(output.last_hidden_state), None)
        if negative and not text.strip():
            return self._zeros()
        first, second = self._models
        narrow = self._run(first, _chunks(text, "eos"), output_hidden_states=True)
        wide = self._run(second, _chunks(text, "zero"), output_hidden_states=True)
        both = torch.cat([narrow.hidden_states[-2], wide.hidden_states[-2]], dim=-1)
        return TextEncoding(_in_a_row(both), wide.text_embeds[:1])

    def _run(self, model: nn.Module, chunks: list[list[int]], **options: Any) -> Any:
        ids = torch.tensor(chunks, device=self._device)
        held = next(model.parameters())
        if held.device == self._device:
            return model(ids, **options)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        lent = {name: tensor.to(self._device) for name, tensor in state.items()}
        return functional_call(model, lent, (ids,), options)

    def _zeros(self) -> TextEncoding:
        """What SDXL was trained to take for "no text"."""
        configs: list[Any] = [model.config for model in self._models]
        width = sum(config.hidden_size for config in configs)
        dtype = next(self._models[0].parameters()).dtype
        tokens = torch.zeros(1, LENGTH, width, dtype=dtype, device=self._device)
        return TextEncoding(tokens, tokens.new_zeros(1, configs[1].projection_dim))


def _chunks(text: str, pad: Any) -> list[list[int]]:
    """Token ids in frames of 77: start, up to 75 tokens, end, padding. At least one frame."""
    tokenizer: Any = clip_tokenizer(pad)
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    cuts = range(0, max(len(ids), 1), CHUNK)
    return [_frame(ids[cut : cut + CHUNK], tokenizer) for cut in cuts]


def _frame(chunk: list[int], tokenizer: Any) -> list[int]:
    padding = [tokenizer.pad_token_id] * (CHUNK - len(chunk))
    return [tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id, *padding]


def _in_a_row(blocks: Tensor) -> Tensor:
    """[k, 77, C] to [1, 77*k, C]."""
    return blocks.reshape(1, -1, blocks.shape[-1])

"""Prompts to conditioning: chunks of 75 tokens, each encoded on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from farm.worker.models.tokenizer import LENGTH, clip_tokenizer

CHUNK = LENGTH - 2
SCORE, NEGATIVE_SCORE = 6.0, 2.5


@dataclass(frozen=True)
class TextEncoding:
    """A prompt as the UNet reads it.

    Attributes:
        tokens: [1, 77*k, C], one block of 77 for each chunk of the prompt.
        pooled: [1, P], the summary of the first chunk; None where the family reads none.
        score: the aesthetic score that an SDXL refiner is told beside the prompt; None for all
            other families.
    """

    tokens: Tensor
    pooled: Tensor | None
    score: float | None = None


@dataclass(frozen=True)
class Readout:
    """How a family reads its text encoders.

    Attributes:
        pads: what fills up a chunk, for each encoder: ``eos`` for OpenAI's CLIP-L, ``zero`` for
            OpenCLIP's H and bigG.
        summary: whether it reads the last layer but one of every encoder side by side, without
            the final norm, and the last encoder's projected summary; otherwise the last layer
            after the final norm. (SD2 skips a layer too; its encoder is cut there when loaded.)
        scores: whether its UNet is told an aesthetic score.
    """

    pads: tuple[Literal["eos", "zero"], ...]
    summary: bool = False
    scores: bool = False


READOUTS = {
    "sd15": Readout(("eos",)),
    "sd2": Readout(("zero",)),
    "sdxl": Readout(("eos", "zero"), summary=True),
    "ssd1b": Readout(("eos", "zero"), summary=True),
    "sdxl-refiner": Readout(("zero",), summary=True, scores=True),
}


class TextEncoder:
    """The one or two CLIP models of a checkpoint.

    Args:
        models: as many as the family's readout has paddings, in that order.
        family: whose readout it is.
        device: where to compute. Models held elsewhere lend it their weights for each prompt.
    """

    def __init__(self, models: Sequence[nn.Module], family: str, device: torch.device) -> None:
        self._models = tuple(models)
        self._readout = READOUTS[family]
        self._device = device

    def encode(self, text: str, *, negative: bool) -> TextEncoding:
        """Encode a prompt of any length; an empty negative one is all zeros on SDXL."""
        score = (NEGATIVE_SCORE if negative else SCORE) if self._readout.scores else None
        if self._readout.summary and negative and not text.strip():
            return self._zeros(score)
        outputs = [
            self._run(model, _chunks(text, pad), output_hidden_states=True)
            for model, pad in zip(self._models, self._readout.pads, strict=True)
        ]
        if not self._readout.summary:
            return TextEncoding(_in_a_row(outputs[0].last_hidden_state), None)
        side_by_side = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return TextEncoding(_in_a_row(side_by_side), outputs[-1].text_embeds[:1], score)

    def _run(self, model: nn.Module, chunks: list[list[int]], **options: Any) -> Any:
        ids = torch.tensor(chunks, device=self._device)
        held = next(model.parameters())
        if held.device == self._device:
            return model(ids, **options)
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        lent = {name: tensor.to(self._device) for name, tensor in state.items()}
        return functional_call(model, lent, (ids,), options)

    def _zeros(self, score: float | None) -> TextEncoding:
        """What SDXL was trained to take for "no text"."""
        configs: list[Any] = [model.config for model in self._models]
        width = sum(config.hidden_size for config in configs)
        dtype = next(self._models[0].parameters()).dtype
        tokens = torch.zeros(1, LENGTH, width, dtype=dtype, device=self._device)
        return TextEncoding(tokens, tokens.new_zeros(1, configs[-1].projection_dim), score)


def _chunks(text: str, pad: Literal["eos", "zero"]) -> list[list[int]]:
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

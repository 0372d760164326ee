"""Prompts to conditioning: chunks of 75 tokens, each encoded on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from farm.worker.models.embeddings import Embedding, EmbeddingShelf
from farm.worker.models.tokenizer import CHUNK, LENGTH, clip_tokenizer

PLACEHOLDER = 0
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

    def encode(
        self, text: str, *, negative: bool, embeddings: EmbeddingShelf | None = None
    ) -> TextEncoding:
        """Encode a prompt of any length; an empty negative one is all zeros on SDXL.

        Args:
            embeddings: whose words are replaced by their vectors.

        Raises:
            CheckpointError: the prompt has an embedding's word that is unusable here.
        """
        score = (NEGATIVE_SCORE if negative else SCORE) if self._readout.scores else None
        if self._readout.summary and negative and not text.strip():
            return self._zeros(score)
        parts = self._parts(text, embeddings)
        outputs = [
            self._run(model, _frames(parts, pad), output_hidden_states=True)
            for model, pad in zip(self._models, self._readout.pads, strict=True)
        ]
        if not self._readout.summary:
            return TextEncoding(_in_a_row(outputs[0].last_hidden_state), None)
        side_by_side = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return TextEncoding(_in_a_row(side_by_side), outputs[-1].text_embeds[:1], score)

    def _parts(self, text: str, embeddings: EmbeddingShelf | None) -> list[int | Embedding]:
        tokenizer: Any = clip_tokenizer("eos")
        ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        if embeddings is None:
            return list(ids)
        configs: list[Any] = [model.config for model in self._models]
        return embeddings.spliced(ids, [config.hidden_size for config in configs])

    def _run(self, model: nn.Module, frames: Sequence[_Frame], **options: Any) -> Any:
        ids = torch.tensor([frame.ids for frame in frames], device=self._device)
        held = next(model.parameters())
        with _spliced_in(model, frames):
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


@dataclass(frozen=True)
class _Frame:
    """One chunk as a text encoder reads it: 77 ids, and the embeddings by their first place."""

    ids: list[int]
    embeddings: dict[int, Embedding]


def _frames(parts: Sequence[int | Embedding], pad: Literal["eos", "zero"]) -> list[_Frame]:
    """Start, up to 75 tokens, end, padding; at least one. An embedding is never cut in two."""
    chunks: list[list[int | Embedding]] = [[]]
    length = 0
    for part in parts:
        size = 1 if isinstance(part, int) else len(part)
        if length + size > CHUNK:
            chunks.append([])
            length = 0
        chunks[-1].append(part)
        length += size
    return [_frame(chunk, clip_tokenizer(pad)) for chunk in chunks]


def _frame(chunk: Sequence[int | Embedding], tokenizer: Any) -> _Frame:
    ids: list[int] = [tokenizer.bos_token_id]
    embeddings: dict[int, Embedding] = {}
    for part in chunk:
        if isinstance(part, int):
            ids.append(part)
        else:
            embeddings[len(ids)] = part
            # Not the end token, by whose place the summary is found.
            ids += [PLACEHOLDER] * len(part)
    ids.append(tokenizer.eos_token_id)
    return _Frame(ids + [tokenizer.pad_token_id] * (LENGTH - len(ids)), embeddings)


@contextmanager
def _spliced_in(model: nn.Module, frames: Sequence[_Frame]) -> Iterator[None]:
    """While the block runs, the model's token table answers with the embeddings' vectors."""
    if not any(frame.embeddings for frame in frames):
        yield
        return

    def splice(_: nn.Module, __: Any, looked_up: Tensor) -> Tensor:
        found = looked_up.clone()
        for row, frame in enumerate(frames):
            for place, embedding in frame.embeddings.items():
                vectors = embedding.vectors[found.shape[-1]]
                found[row, place : place + len(embedding)] = vectors.to(found)
        return found

    table = next(inner for name, inner in model.named_modules() if name.endswith("token_embedding"))
    hook = table.register_forward_hook(splice)
    try:
        yield
    finally:
        hook.remove()


def _in_a_row(blocks: Tensor) -> Tensor:
    """[k, 77, C] to [1, 77*k, C]."""
    return blocks.reshape(1, -1, blocks.shape[-1])

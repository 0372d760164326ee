"""Prompts to conditioning: chunks of 75 tokens, each encoded on its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from farm.errors import InvalidInput
from farm.spec.prompt.chunks import Token, divide
from farm.spec.prompt.emphasis import Section, Segment, sections
from farm.spec.prompt.tokens import COMMA
from farm.spec.reading import ReadingOptions
from farm.worker.models.chunks import Chunk, Frame, frame
from farm.worker.models.embeddings import Embedding, EmbeddingShelf
from farm.worker.models.hidden import Hidden, queued
from farm.worker.models.offload import streamed
from farm.worker.models.tokenizer import LENGTH, clip_tokenizer

PLAINLY = ReadingOptions()
AT_ONCE = 32
"""Chunks that go through a text encoder together, at most."""
SCORE, NEGATIVE_SCORE = 6.0, 2.5


@dataclass(frozen=True)
class TextEncoding:
    """A prompt as the UNet reads it; one row for each of the texts that it is made of.

    Attributes:
        tokens: [texts, 77*k, C], one block of 77 for each chunk.
        pooled: [texts, P], the summary of the first chunk; None where the family reads none.
        score: the aesthetic score that an SDXL refiner is told beside the prompt; None for all
            other families.
    """

    tokens: Tensor
    pooled: Tensor | None
    score: float | None = None


class Words(NamedTuple):
    """What a prompt says at its different times, at least one text."""

    texts: tuple[str, ...]
    negative: bool = False


@dataclass(frozen=True)
class Readout:
    """How a family reads its text encoders.

    Attributes:
        pads: what fills up a chunk, for each encoder: ``eos`` for OpenAI's CLIP-L, ``zero`` for
            OpenCLIP's H and bigG.
        skips: whether ``clip_skip`` applies to it.
        summary: whether it reads the last layer but one of every encoder side by side, without
            the final norm, and the last encoder's projected summary; otherwise the last layer
            after the final norm. (SD2 skips a layer too; its encoder is cut there when loaded.)
        scores: whether its UNet is told an aesthetic score.
    """

    pads: tuple[Literal["eos", "zero"], ...]
    skips: bool = False
    summary: bool = False
    scores: bool = False


READOUTS = {
    "sd15": Readout(("eos",), skips=True),
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
        device: where to compute. The weights of models held elsewhere are streamed.
    """

    def __init__(self, models: Sequence[nn.Module], family: str, device: torch.device) -> None:
        self._models = tuple(models)
        self._readout = READOUTS[family]
        self._device = device

    def encode_together(
        self,
        prompts: Sequence[Words],
        *,
        reading: ReadingOptions = PLAINLY,
        embeddings: EmbeddingShelf | None = None,
    ) -> list[TextEncoding]:
        """Encode prompts of any length in as few calls of the models as they take, each as it is
        alone but for rounding.

        As in webui, texts of one prompt are encoded side by side: shorter ones get empty chunks,
        and the mean that emphasis restores is that of all of them. Empty negative texts are all
        zeros on SDXL.

        Args:
            embeddings: whose words are replaced by their vectors.

        Raises:
            CheckpointError: a text has an embedding's word that is unusable here.
            InvalidInput: emphasis beyond all bounds, or ``clip_skip`` beyond the layers there are.
        """
        rows = [self._rows(prompt, reading, embeddings) for prompt in prompts]
        frames = list(chain.from_iterable(rows))
        read = [
            self._read(model, [frame(row, clip_tokenizer(pad)) for row in frames], reading)
            for model, pad in zip(self._models, self._readout.pads, strict=True)
            if frames
        ]
        ends = list(accumulate(map(len, rows)))
        return [
            self._encoding(prompt, [each.part(end - len(own), end) for each in read], reading)
            for prompt, own, end in zip(prompts, rows, ends, strict=True)
        ]

    def _rows(
        self, prompt: Words, reading: ReadingOptions, embeddings: EmbeddingShelf | None
    ) -> list[Chunk]:
        """As many chunks for each text; none for a prompt that is not read."""
        if self._readout.summary and prompt.negative and not any(t.strip() for t in prompt.texts):
            return []
        chunks = [self._chunks(text, reading, embeddings) for text in prompt.texts]
        longest = max(map(len, chunks))
        return [chunk for text in chunks for chunk in text + [[]] * (longest - len(text))]

    def _encoding(
        self, prompt: Words, read: Sequence[Hidden], reading: ReadingOptions
    ) -> TextEncoding:
        score = (NEGATIVE_SCORE if prompt.negative else SCORE) if self._readout.scores else None
        count = len(prompt.texts)
        if not read or not len(read[0].hidden):
            return self._zeros(count, score)
        weighed = [each.weighed(count, reading.emphasis) for each in read]
        summary = read[-1].summary if self._readout.summary else None
        return TextEncoding(
            torch.cat(weighed, dim=-1).flatten(1, 2),
            None if summary is None else summary[:: len(summary) // count].clone(),
            score,
        )

    def _chunks(
        self, text: str, reading: ReadingOptions, embeddings: EmbeddingShelf | None
    ) -> list[Chunk]:
        tokenizer: Any = clip_tokenizer("eos")
        as_written: tuple[Section, ...] = ((Segment(text, 1.0),),)
        found = as_written if reading.emphasis == "None" else sections(text)
        configs: list[Any] = [model.config for model in self._models]
        widths = [config.hidden_size for config in configs]

        def tokens(segment: Segment) -> Iterator[Token[int | Embedding]]:
            ids = tokenizer(segment.text, add_special_tokens=False, verbose=False).input_ids
            for part in embeddings.spliced(ids, widths) if embeddings else ids:
                yield Token(part, segment.weight, 1 if isinstance(part, int) else len(part))

        comma = tokenizer.convert_tokens_to_ids(COMMA)
        return divide((chain.from_iterable(map(tokens, section)) for section in found), comma=comma)

    def _read(self, model: nn.Module, frames: Sequence[Frame], reading: ReadingOptions) -> Hidden:
        parts = [frames[first : first + AT_ONCE] for first in range(0, len(frames), AT_ONCE)]
        outputs = [self._run(model, part, output_hidden_states=True) for part in parts]
        if self._readout.summary:
            hidden = [output.hidden_states[-2] for output in outputs]
        elif self._readout.skips and reading.clip_skip > 1:
            hidden = [self._skipped(model, output, reading) for output in outputs]
        else:
            hidden = [output.last_hidden_state for output in outputs]
        summaries = [output.text_embeds for output in outputs if "text_embeds" in output]
        return Hidden(
            torch.cat(hidden),
            [each.weights for each in frames],
            torch.cat(summaries) if summaries else None,
        )

    def _skipped(self, model: Any, output: Any, reading: ReadingOptions) -> Tensor:
        """An earlier layer, through the norm that is made for the last."""
        layers = len(output.hidden_states) - 1
        if reading.clip_skip > layers:
            raise InvalidInput(
                f"The text encoder has {layers} layers; clip_skip {reading.clip_skip} skips all.",
                field="clip_skip",
                value=reading.clip_skip,
                remedy=f"Use {layers} or less; 1 and 2 are usual.",
            )
        hidden: Tensor = output.hidden_states[-reading.clip_skip]
        norm = model.final_layer_norm
        weight, bias = norm.weight.to(hidden), norm.bias.to(hidden)
        return functional.layer_norm(hidden, norm.normalized_shape, weight, bias, norm.eps)

    def _run(self, model: nn.Module, frames: Sequence[Frame], **options: Any) -> Any:
        ids = queued([each.ids for each in frames], self._device)
        try:
            with _spliced_in(model, frames):
                return model(ids, **options)
        finally:
            if stream := streamed(model):
                stream.rest()

    def _zeros(self, texts: int, score: float | None) -> TextEncoding:
        """What SDXL was trained to take for "no text"."""
        configs: list[Any] = [model.config for model in self._models]
        width = sum(config.hidden_size for config in configs)
        dtype = next(self._models[0].parameters()).dtype
        tokens = torch.zeros(texts, LENGTH, width, dtype=dtype, device=self._device)
        return TextEncoding(tokens, tokens.new_zeros(texts, configs[-1].projection_dim), score)


@contextmanager
def _spliced_in(model: nn.Module, frames: Sequence[Frame]) -> Iterator[None]:
    """While the block runs, the model's token table answers with the embeddings' vectors."""
    if not any(frame.embeddings for frame in frames):
        yield
        return

    def splice(_: nn.Module, __: Any, looked_up: Tensor) -> Tensor:
        found = looked_up.clone()
        for row, read in enumerate(frames):
            for place, embedding in read.embeddings.items():
                vectors = embedding.vectors[found.shape[-1]]
                found[row, place : place + len(embedding)] = vectors.to(found)
        return found

    table = next(inner for name, inner in model.named_modules() if name.endswith("token_embedding"))
    hook = table.register_forward_hook(splice)
    try:
        yield
    finally:
        hook.remove()

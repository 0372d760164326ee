"""Textual inversion: words that stand for trained vectors (https://arxiv.org/abs/2208.01618).

An embedding's word is its file's name. Where a prompt's tokens spell it, in any case of letters,
its vectors take the tokens' place; of several the longest counts. They are given to the text
encoders for that prompt alone, and never enter a table that others read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farm.errors import CheckpointError, EmbeddingError
from farm.spec.prompt.chunks import CHUNK
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.files import legible
from farm.worker.models.header import read_header
from farm.worker.models.kinds import EMBEDDING, SUFFIX
from farm.worker.models.pickled import read_pickled
from farm.worker.models.reader import read_tensors
from farm.worker.models.tokenizer import clip_tokenizer

MAX_BYTES = 16 * 2**20
MAX_WIDTH = 8192
FAMILIES = {768: "SD1", 1024: "SD2", 1280: "SDXL"}
"""Width of the widest text encoder to its family; used in messages only."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """A word and its vectors.

    Attributes:
        vectors: for each text encoder it was made for, by its width: [n, width] float32, n from
            1 to 75 and the same for all.
    """

    name: str
    vectors: Mapping[int, Tensor]

    def __len__(self) -> int:
        """Tokens that it takes the place of."""
        return len(next(iter(self.vectors.values())))


class EmbeddingShelf:
    """The embeddings there are. Call it from one thread at a time.

    Args:
        files: the assets there are, asked anew for each prompt.
    """

    def __init__(self, files: Iterable[AssetFile] = ()) -> None:
        self._files = files
        self._known: tuple[AssetFile, ...] = ()
        self._words: Mapping[int, list[tuple[list[int], list[AssetFile]]]] = {}

    def spliced(self, ids: Sequence[int], widths: Sequence[int]) -> list[int | Embedding]:
        """Token ids with embeddings in place of the words that are theirs.

        Args:
            ids: of a prompt, without start, end and padding.
            widths: of the text encoders that read it.

        Raises:
            CheckpointError: an embedding is unusable, or made for other text encoders.
        """
        self._refresh()
        parts: list[int | Embedding] = []
        place = 0
        while place < len(ids):
            for word, files in self._words.get(ids[place], ()):
                if list(ids[place : place + len(word)]) == word:
                    parts.append(_usable(files, widths))
                    place += len(word)
                    break
            else:
                parts.append(ids[place])
                place += 1
        return parts

    def _refresh(self) -> None:
        """Find out the words, if files have come or gone."""
        files = tuple(file for file in self._files if file.kind == EMBEDDING)
        if files == self._known:
            return
        by_word: dict[tuple[int, ...], list[AssetFile]] = defaultdict(list)
        tokenizer: Any = clip_tokenizer("eos")
        for file in sorted(files, key=lambda file: file.error is not None):
            word = tokenizer(
                legible(file.path.stem), add_special_tokens=False, verbose=False
            ).input_ids
            if word:
                by_word[tuple(word)].append(file)
        words: dict[int, list[tuple[list[int], list[AssetFile]]]] = defaultdict(list)
        for ids in sorted(by_word, key=len, reverse=True):
            words[ids[0]].append((list(ids), by_word[ids]))
        self._known, self._words = files, words


def read_embedding(path: Path) -> Embedding:
    """Read an embedding: webui's ``.pt`` and ``.safetensors``, diffusers', and SDXL's of both.

    A ``.pt`` or ``.bin`` is a pickle, see :func:`read_pickled`.

    Raises:
        CheckpointError: damaged, too large, not finite, or no embedding.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _refused(path, "is larger than 16 MB", "Embeddings are small; look what it is.")
        content = (
            _safetensors(path)
            if path.suffix.lower() == SUFFIX
            else read_pickled(path, max_bytes=MAX_BYTES, refused=_refused)
        )
    except OSError as error:
        raise _refused(path, f"cannot be read: {error.strerror}", "Look for its file.") from error
    tables = [_checked(path, table) for table in _tables(path, content)]
    if len({len(table) for table in tables}) > 1:
        raise _refused(path, "has unlike numbers of vectors for its text encoders")
    return Embedding(path.stem, {table.shape[1]: table for table in tables})


def _safetensors(path: Path) -> Mapping[str, Any]:
    try:
        header = read_header(path)
        return read_tensors(header, header.tensors, dtype=torch.float32, device=torch.device("cpu"))
    except CheckpointError as error:
        raise _refused(path, f"cannot be read: {error.message}") from error


def _tables(path: Path, content: Any) -> list[Any]:
    """The table of vectors for each text encoder."""
    if isinstance(content, Mapping):
        if isinstance(inner := content.get("string_to_param"), Mapping):
            content = inner
        if {"clip_l", "clip_g"} & content.keys():
            return [content[name] for name in ("clip_l", "clip_g") if name in content]
        tables = [table for table in content.values() if isinstance(table, Tensor)]
        if len(tables) == 1:
            return tables
    raise _refused(path, "is no embedding", "Farm knows webui's and diffusers' formats.")


def _checked(path: Path, table: Any) -> Tensor:
    if not isinstance(table, Tensor) or not 1 <= table.ndim <= 2 or not table.is_floating_point():
        raise _refused(path, "holds no table of vectors")
    rows = table[None] if table.ndim == 1 else table
    if not 1 <= len(rows) <= CHUNK or not 1 <= rows.shape[1] <= MAX_WIDTH:
        sides = "x".join(map(str, rows.shape))
        raise _refused(path, f"holds {sides} numbers", f"Use one of at most {CHUNK} vectors.")
    rows = rows.detach().float().contiguous()
    if not bool(torch.isfinite(rows).all()):
        raise _refused(path, "holds NaN or infinity")
    return rows


@lru_cache(maxsize=256)
def _read(path: Path, _: object) -> Embedding:
    """What the file of this path and identity holds."""
    return read_embedding(path)


def _usable(files: Sequence[AssetFile], widths: Sequence[int]) -> Embedding:
    """Of files of one word the first that is for these text encoders."""
    for file in files:
        found = _read(file.path, file.identity)
        # SDXL's narrow encoder is as wide as SD1's only one, yet its vectors alone say little.
        if set(widths) <= found.vectors.keys() and max(found.vectors) in widths:
            return found
    widest = max(found.vectors)
    raise _refused(
        file.path,
        f"is made for {FAMILIES.get(widest, f'text encoders {widest} wide')}, and this "
        f"checkpoint's text encoders are {' and '.join(map(str, widths))} wide",
        "Use one for this checkpoint's family, leave the word out, or rename the file.",
    )


def _refused(path: Path, what: str, remedy: str = "Get it again.") -> EmbeddingError:
    message = f"The embedding {path.name} {what.removesuffix('.')}."
    return EmbeddingError(message, field=EMBEDDING, value=path.stem, remedy=remedy)

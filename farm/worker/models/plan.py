"""One model of a checkpoint on its way into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from farm.worker.models.header import Header, damaged
from farm.worker.models.parts import Part, Weights, from_folder
from farm.worker.models.reader import DTYPES, Readers

SHOWN_NAMES = 4


@dataclass(frozen=True)
class Source:
    """A file, and the tensors in it that are wanted."""

    header: Header
    names: tuple[str, ...]


@dataclass(frozen=True)
class PartPlan:
    """Which tensors of which files go onto which module.

    Attributes:
        module: built on ``meta``; :meth:`load` gives it its weights.
        sources: one file, or the shards of one.
        folder_names: tensors go by a diffusers folder's names, not by a single file's.
        remedy: what to do where the weights do not fit the module.
        dtype, device: where the weights go.
    """

    part: Part
    module: nn.Module
    sources: tuple[Source, ...]
    folder_names: bool
    remedy: str
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes(self) -> int:
        """Memory the weights will take."""
        return sum(weight.numel() for weight in self.module.parameters()) * self.dtype.itemsize

    def check(self) -> None:
        """Raise :class:`CheckpointError` unless the file has every weight in its shape."""
        entries = {
            name: source.header.tensors[name] for source in self.sources for name in source.names
        }
        shapes = {
            name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            for name, entry in entries.items()
        }
        try:
            found = self._translate(shapes)
        except (KeyError, AttributeError) as error:  # how the key maps stumble over a gap
            what = f"lacks weights of its {self.part.name}: {error} and perhaps more"
            raise damaged(self._path, what, self.remedy) from error
        expected = self.module.state_dict()
        if missing := [name for name in expected if name not in found]:
            count = "1 weight" if len(missing) == 1 else f"{len(missing)} weights"
            what = f"lacks {count} of its {self.part.name}: {_some(missing)}"
            raise damaged(self._path, what, self.remedy)
        if odd := [name for name in expected if found[name].shape != expected[name].shape]:
            what = f"has a {self.part.name} of unusual shape: {_some(odd)}"
            raise damaged(self._path, what, self.remedy)

    def begin(self, readers: Readers) -> Callable[[], nn.Module]:
        """Have the weights read; what is returned waits for them and gives the module.

        Raises:
            CheckpointError: here and there, as :func:`farm.worker.models.reader.read_tensors`
                does.
        """
        awaited = [
            readers.begin(source.header, source.names, dtype=self.dtype, device=self.device)
            for source in self.sources
        ]
        return lambda: self._filled(awaited)

    def _filled(self, awaited: Iterable[Callable[[], Weights]]) -> nn.Module:
        read: Weights = {}
        for wait in awaited:
            read |= wait()
        found = self._translate(read)
        del read
        # Out of the one table as they go into the other, so that no copy outlives its original.
        own = {name: _whole(found.pop(name)) for name in self.module.state_dict()}
        self.module.load_state_dict(own, assign=True)
        self._fill_positions()
        return self.module

    def _translate(self, weights: Weights) -> Weights:
        if self.folder_names:
            return from_folder(weights, self.module)
        return self.part.translate(weights, self.module)

    @property
    def _path(self) -> Path:
        return self.sources[0].header.path

    def _fill_positions(self) -> None:
        """CLIP's position numbers are no weights, so that they are still on ``meta``."""
        for name, buffer in list(self.module.named_buffers()):
            owner = self.module.get_submodule(name.rpartition(".")[0])
            positions = torch.arange(buffer.shape[-1], device=self.device)
            owner.register_buffer("position_ids", positions.expand(1, -1), persistent=False)


def _whole(weight: Tensor) -> Tensor:
    """In one piece again, where its translation turned or cut it; convolutions stay channels
    last."""
    if weight.ndim == 4:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight.contiguous()


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")

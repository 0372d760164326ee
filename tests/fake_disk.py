"""A disk with checkpoints that weigh nothing, and a cache of them."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farm.errors import CheckpointError
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.reader import Turn
from farm.worker.models.tiers import SPARE


@dataclass
class Disk:
    """Stands in for the loader: sizes by name, what breaks, and what was read."""

    sizes: dict[str, int]
    broken_index: set[str] = field(default_factory=set)
    broken_weights: set[str] = field(default_factory=set)
    loaded: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)
    common: dict[str, tuple[nn.Module, int]] = field(default_factory=dict)
    gate: Callable[[str], object] = lambda name: None
    moving: Callable[[str], object] = lambda name: None
    too_large: set[str] = field(default_factory=set)

    @classmethod
    def installed(cls, monkeypatch: pytest.MonkeyPatch) -> Disk:
        """One with five checkpoints, in the loader's place."""
        disk = cls({"a": 4, "b": 4, "c": 4, "large": 9, "huge": 11})
        monkeypatch.setattr("farm.worker.models.tiers.prepare", disk.prepare)
        return disk

    def parts(self, name: str) -> dict[nn.Module, int]:
        """A model of its own, and perhaps one that it shares with others."""
        both, bytes = self.common.get(name, (None, 0))
        own = {nn.Identity(): self.sizes[name] - bytes}
        return own if both is None else {**own, both: bytes}

    def prepare(self, file: AssetFile, *_: object, **__: object) -> Prepared:
        if file.error:
            raise CheckpointError(file.error)
        if file.name in self.broken_index:
            raise CheckpointError(f"{file.name} is cut short.")
        return Prepared(self, file, self.sizes[file.name])


@dataclass
class Prepared:
    """Stands in for a checkpoint whose index was read."""

    disk: Disk
    file: AssetFile
    bytes: int
    streams: bool = False
    saved: object = None

    @property
    def vae_marks(self) -> object:
        return self.file.marks

    @property
    def may_stream(self) -> bool:
        return not self.streams

    def streamed(self) -> Prepared:
        """A byte of it is on the device at a time."""
        return Prepared(self.disk, self.file, 1, streams=True)

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def weights(self) -> dict[str, int]:
        return {f"part {place}": size for place, size in enumerate(self._parts.values())}

    def fetch(self, turn: Turn = nullcontext) -> dict[str, nn.Module]:
        """Two tensors, into host memory."""
        for _ in range(2):
            with turn():
                self.disk.gate(self.name)
        if self.name in self.disk.broken_weights:
            raise CheckpointError(f"{self.name} was changed while it was loaded.")
        self.disk.fetched.append(self.name)
        return {f"part {place}": module for place, module in enumerate(self._parts)}

    def load(
        self,
        held: Sequence[nn.Module] = (),
        *,
        fetched: dict[str, nn.Module] | None = None,
        turn: Turn = nullcontext,
    ) -> Resident:
        """One tensor, and another one behind the gate."""
        self.disk.beside.append(len(held))
        with turn():
            pass
        if fetched is None:
            self.disk.gate(self.name)
            if self.name in self.disk.broken_weights:
                raise CheckpointError(f"{self.name} was changed while it was loaded.")
            if self.name in self.disk.too_large and not self.streams:
                raise torch.OutOfMemoryError("CUDA out of memory")
            with turn():
                self.disk.loaded.append(self.name)
        held = dict.fromkeys(self._parts, 1) if self.streams else self._parts
        return Resident(self.name, self._parts, held, self.disk)

    @cached_property
    def _parts(self) -> dict[nn.Module, int]:
        return self.disk.parts(self.name)


@dataclass
class Resident:
    """Stands in for a checkpoint: models without weights, and where they are."""

    name: str
    weights: dict[nn.Module, int]
    held: dict[nn.Module, int]
    disk: Disk = field(repr=False)
    load_seconds: float = 0.5
    recorded_bytes: int | None = None
    recorded: bool = False
    streamable: bool = False
    squeezed: bool = False
    squeezed_seconds: float = 0.0
    in_host: list[nn.Module] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.held.values())

    def give_up_speed(self) -> bool:
        """Recordings leave, once, if there are any."""
        left, self.recorded = self.recorded, False
        return left

    def stream(self) -> bool:
        """Its weights leave, once, if they can."""
        left, self.streamable = self.streamable, False
        self.squeezed = self.squeezed or left
        return left

    def to_host(self, needed: Container[nn.Module]) -> None:
        self.disk.moving(self.name)
        self.in_host = [module for module in self.held if module not in needed]

    def to_device(self) -> None:
        self.in_host = []


def make_cache(
    disk: Disk, *, host_bytes: int = 0, memory_bytes: int = 2 * SPARE, files: Any = None
) -> ModelCache:
    if files is None:
        files = [AssetFile(name, Path(name), "sd15", 512, 1) for name in disk.sizes]
    profile = replace(by_name("cpu"), weights_bytes=10, memory_bytes=memory_bytes)
    return ModelCache(files, profile, torch.device("cpu"), host_bytes=host_bytes)

"""Checkpoints in host memory: such as have left the device, and such as have never been there."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.device import Held
from farm.worker.models.loader import Prepared
from farm.worker.models.reader import Turn


@dataclass(frozen=True)
class Parcel:
    """A checkpoint in host memory.

    Attributes:
        file: it was read from.
        parts: its models, and the bytes of each.
        device_bytes: memory that it takes on the device; less, where weights stay here.
        unpack: moves it to the device, where the models are that it is given; it enters the turn
            for each model of one that has not been there yet.
        settle: moves what is on the device here, but for models that others need there.
    """

    file: AssetFile
    parts: Mapping[nn.Module, int]
    device_bytes: int
    unpack: Callable[[Sequence[nn.Module], Turn], Checkpoint]
    settle: Callable[[Container[nn.Module]], None] = lambda _: None

    @property
    def bytes(self) -> int:
        """Memory that it takes here."""
        return sum(self.parts.values())


def left(held: Held) -> Parcel:
    """A checkpoint that leaves the device, and whose weights will be moved."""

    def unpack(_: Sequence[nn.Module], __: Turn) -> Checkpoint:
        held.checkpoint.to_device()
        return held.checkpoint

    checkpoint = held.checkpoint
    return Parcel(held.file, checkpoint.weights, checkpoint.bytes, unpack, checkpoint.to_host)


def ahead(prepared: Prepared, turn: Turn) -> Parcel:
    """A checkpoint that is read now and has not been on the device yet."""
    fetched = prepared.fetch(turn)

    def unpack(beside: Sequence[nn.Module], turn: Turn) -> Checkpoint:
        return prepared.load(beside, fetched=fetched, turn=turn)

    parts = {fetched[part]: size for part, size in prepared.weights.items()}
    return Parcel(prepared.file, parts, prepared.bytes, unpack)

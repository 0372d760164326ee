"""How pictures pass through VAEs and through models that enlarge them: whole or in which tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from farm.spec.measurement import Call
from farm.worker.engine.room import Room
from farm.worker.memory.exhaustion import HostExhausted, out_of_memory
from farm.worker.memory.experience import Experience
from farm.worker.memory.planner import enlarge_peak, last_modes
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.upscaler import PlacedUpscaler, Upscaler


class PictureLimits:
    """Learns what pictures take on one device, and plans by it. Belongs to the engine's thread."""

    def __init__(self, room: Room, profile: MemoryProfile, experience: Experience) -> None:
        self._room = room
        self._profile = profile
        self._experience = experience
        self._tiled: dict[Call, int] = {}

    @property
    def dtype(self) -> torch.dtype:
        """What models that enlarge compute in, if they stand it."""
        dtype: torch.dtype = getattr(torch, self._profile.dtype)
        return dtype

    @contextmanager
    def decoding(
        self, checkpoint: Checkpoint, pixels: int, *, strict: bool = False
    ) -> Iterator[None]:
        """Learn what the decoding in the block takes, and try nothing whole again in this life
        that was too much, or more than that. What not even tiles had memory for is too much in
        lives to come too.

        Tiles show in a picture, if one looks closely: that is better than none. But another life
        may have more memory, or something else may have had it here.
        """
        self._room.clear(checkpoint, pixels, 1)
        kind, own = checkpoint.vae_call, checkpoint.tile_over
        checkpoint.tile_over = before = min(own, self._tiled.get(kind, own))
        least, _ = last_modes(self._profile, pixels, kind.dtype)
        last = replace(kind, mode=least, pixels=pixels)
        taking = self._room.taking(checkpoint.decode_call(pixels, strict=strict))
        try:
            with self._noting(last, lambda: checkpoint.decode_call(pixels)), taking:
                yield
        finally:
            if checkpoint.tile_over < before:
                self._tiled[kind] = checkpoint.tile_over

    def decoded(
        self, checkpoint: Checkpoint, pixels: int, seconds: float, *, strict: bool = False
    ) -> None:
        """Learn what a decoding took on the clock."""
        self._experience.timed(checkpoint.decode_call(pixels, strict=strict), seconds)

    @contextmanager
    def encoding(
        self, checkpoint: Checkpoint, pixels: int, *, strict: bool = False
    ) -> Iterator[None]:
        """:meth:`decoding`, of a picture on its way to a latent."""
        self._room.clear(checkpoint, pixels, 1)
        kind, own = checkpoint.encode_call(0), checkpoint.encode_tile_over
        checkpoint.encode_tile_over = before = min(own, self._tiled.get(kind, own))
        _, least = last_modes(self._profile, pixels, kind.dtype)
        last = replace(kind, mode=least, pixels=pixels)
        taking = self._room.taking(checkpoint.encode_call(pixels, strict=strict))
        try:
            with self._noting(last, lambda: checkpoint.encode_call(pixels)), taking:
                yield
        finally:
            if checkpoint.encode_tile_over < before:
                self._tiled[kind] = checkpoint.encode_tile_over

    def encoded(
        self, checkpoint: Checkpoint, pixels: int, seconds: float, *, strict: bool = False
    ) -> None:
        """Learn what an encoding took on the clock."""
        self._experience.timed(checkpoint.encode_call(pixels, strict=strict), seconds)

    def side(
        self, upscaler: Upscaler, dtype: torch.dtype, sides: Sequence[int], *, strict: bool
    ) -> int:
        """The first of these sides of tiles, in pixels, that is planned to fit beside all the
        weights that the profile may ever hold, or else the last one. For ``strict`` pictures by
        the formula alone.
        """
        weights = self._profile.weights_bytes + upscaler.bytes_in(dtype)
        learnt = None if strict else self._experience
        for side in sides:
            peak = self._peak(upscaler, dtype, side, weights=weights, experience=learnt)
            if peak <= self._profile.memory_bytes:
                return side
        return sides[-1]

    def crowded(self, upscaler: Upscaler, dtype: torch.dtype, side: int) -> bool:
        """Whether a tile is too much beside what is on the device, its model not yet."""
        weights = self._room.bytes + upscaler.bytes_in(dtype)
        peak = self._peak(upscaler, dtype, side, weights=weights, experience=self._experience)
        return peak > self._profile.memory_bytes

    @contextmanager
    def enlarging(self, model: PlacedUpscaler, pixels: int) -> Iterator[None]:
        """Learn what the tile in the block takes."""
        with self._room.taking(replace(model.of.call(model.dtype), pixels=pixels)):
            yield

    def _peak(
        self,
        upscaler: Upscaler,
        dtype: torch.dtype,
        side: int,
        *,
        weights: int,
        experience: Experience | None,
    ) -> int:
        call = replace(upscaler.call(dtype), pixels=side**2)
        return enlarge_peak(call, upscaler.scale, weights_bytes=weights, experience=experience)

    @contextmanager
    def _noting(self, last: Call, now: Callable[[], Call]) -> Iterator[None]:
        """Remember where memory ran out and nothing less can be tried, until it suffices.

        Args:
            last: what can be tried in the end.
            now: what is tried.
        """
        try:
            yield
        except Exception as error:
            short = out_of_memory(error) and not isinstance(error, HostExhausted)
            if short and now() == last:
                self._experience.failed(last)
            raise
        self._experience.succeeded(last)

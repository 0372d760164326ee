"""Forwards and decodings that are run only to be measured."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from farm.spec.measurement import Call
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.memory.exhaustion import out_of_memory
from farm.worker.memory.experience import Experience
from farm.worker.memory.meter import Meter
from farm.worker.memory.planner import Learnt, decode_bytes, denoise_bytes, encode_bytes
from farm.worker.memory.profiles import PIXELS_1024, MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.decoder import FACTOR

REPEATS = 3
"""Timed calls of each kind, after one that warms the device up."""
GUIDED_ROWS = 2

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A call as it was predicted and as it was.

    Attributes:
        width, height: of the image.
        predicted: bytes beyond the weights, as they were predicted before.
        bytes: as they were; None on a CPU, where that cannot be told.
        seconds: of one call; None where memory ran out.
    """

    call: Call
    width: int
    height: int
    predicted: int
    bytes: int | None
    seconds: float | None


class Calibration:
    """Measures what calls of a checkpoint take. Everything here is for the engine's thread; each
    of the moments that :meth:`moments` gives may have its own time between the steps of jobs."""

    def __init__(
        self,
        models: ModelCache,
        profile: MemoryProfile,
        device: torch.device,
        *,
        experience: Experience,
        meter: Meter,
    ) -> None:
        self._models = models
        self._profile = profile
        self._device = device
        self._experience = experience
        self._meter = meter

    def moments(self, name: str, sizes: Sequence[Size]) -> list[Callable[[], Calibrated]]:
        """One measurement each: of every bucket that is worth it at each size, and of a picture in
        both directions.

        Args:
            name: of a checkpoint, which is loaded if need be.
            sizes: by default the one that the UNet was made for, and half of it.

        Raises:
            CheckpointError: there is no such checkpoint, or it is unusable.
            DoesNotFit: it does not fit beside those in use.
        """
        checkpoint = self._models.get(name)
        side = checkpoint.side
        found: list[Callable[[], Calibrated]] = []
        for width, height in sizes or ((side // 2, side // 2), (side, side)):
            most = self._profile.rows_at_1024 * PIXELS_1024 // (width * height)
            found += [
                partial(self._forward, name, (width, height), rows)
                for rows in self._profile.buckets
                if rows <= max(GUIDED_ROWS, most)
            ]
            found.append(partial(self._decode, name, (width, height)))
            found.append(partial(self._encode, name, (width, height)))
        return found

    def _forward(self, name: str, size: Size, rows: int) -> Calibrated:
        with self._models.use(name) as checkpoint:
            pixels = size[0] * size[1]
            call = replace(checkpoint.unet_call, pixels=pixels, rows=rows)
            learnt = Learnt(checkpoint.unet_call, checkpoint.vae_call, self._experience)
            predicted = denoise_bytes(self._profile, checkpoint.family, pixels, rows, learnt=learnt)
            work = self._prepared(checkpoint, size, rows)
            return Calibrated(call, *size, int(predicted), *self._measured(call, work))

    def _decode(self, name: str, size: Size) -> Calibrated:
        with self._models.use(name) as checkpoint:
            pixels = size[0] * size[1]
            call = checkpoint.decode_call(pixels)
            learnt = Learnt(checkpoint.unet_call, checkpoint.vae_call, self._experience)
            predicted = decode_bytes(self._profile, pixels, learnt=learnt)
            latent = torch.zeros(4, size[1] // FACTOR, size[0] // FACTOR, device=self._device)
            taken = self._measured(call, lambda: checkpoint.decode(latent))
            if checkpoint.decode_call(pixels) != call:  # it went over to tiles on the way
                self._experience.failed(call)
                taken = None, None
            return Calibrated(call, *size, int(predicted), *taken)

    def _encode(self, name: str, size: Size) -> Calibrated:
        with self._models.use(name) as checkpoint:
            pixels = size[0] * size[1]
            call = checkpoint.encode_call(pixels)
            learnt = Learnt(checkpoint.unet_call, checkpoint.vae_call, self._experience)
            predicted = encode_bytes(self._profile, pixels, learnt=learnt)
            picture = torch.zeros(size[1], size[0], 3, dtype=torch.uint8)
            taken = self._measured(call, lambda: checkpoint.encode_picture(picture))
            if checkpoint.encode_call(pixels) != call:  # it went over to tiles on the way
                self._experience.failed(call)
                taken = None, None
            return Calibrated(call, *size, int(predicted), *taken)

    def _prepared(self, checkpoint: Checkpoint, size: Size, rows: int) -> Callable[[], object]:
        text = checkpoint.encode("")
        width, height = map(float, size)
        aim = [height, width] if text.score is None else [text.score]
        sizes = torch.tensor([[height, width, 0.0, 0.0, *aim]], device=self._device)
        x = torch.zeros(rows, 4, size[1] // FACTOR, size[0] // FACTOR, device=self._device)
        t = torch.full((rows,), 500.0, device=self._device)
        tokens = text.tokens.expand(rows, -1, -1).contiguous()
        if text.pooled is None:
            return lambda: checkpoint.predict(x, t, tokens)
        pooled, size_ids = text.pooled.expand(rows, -1), sizes.expand(rows, -1)
        return lambda: checkpoint.predict(x, t, tokens, pooled=pooled, size_ids=size_ids)

    @torch.no_grad()
    def _measured(self, call: Call, work: Callable[[], object]) -> tuple[int | None, float | None]:
        """Bytes and seconds, both None where memory ran out."""
        try:
            for _ in range(1 + REPEATS):
                self._once(call, work)
        except Exception as error:
            if not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self._experience.failed(call)
            return None, None
        self._experience.succeeded(call)
        known = self._experience.of(call)
        return known.bytes, known.seconds

    def _once(self, call: Call, work: Callable[[], object]) -> None:
        watch = Stopwatch(self._device)
        with self._meter.taking() as taken:
            work()
        watch.stop()
        self._experience.timed(call, watch.seconds(), enough=1)
        if taken.bytes is not None and taken.outside is not None:
            self._experience.took(call, taken.bytes, taken.outside)

"""What a job took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from farm.worker.memory.reading import MemoryReading


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What one job took in the engine.

    Attributes:
        load_seconds: of loading its checkpoint while it waited; 0 when that was warm.
        encode_seconds: of encoding its texts, 0 when they were known, and pictures, and of models
            that enlarge these.
        upscale_seconds: of those, what the models took; 0 where another job had the same made.
        upscale_host_seconds: what they took of the host, where the device had no memory for them;
            no part of any other.
        denoise_seconds: on the clock, from the start of its first step to the end of its last.
        decode_seconds: of decoding its latents.
        gpu_seconds: its fair share of the device: of a forward by its rows, of a load or an
            encoding by those who waited for it, and its decode.
        steps: sampler steps done, those that other jobs did for it not counted.
        iterations_per_second: steps / denoise_seconds.
        forwards: calls of the model that it took part in.
        mean_rows: rows in them on average, its own included, padding not.
        buckets: the row counts they were padded to, ascending.
        precision: of the UNet, where the image overflowed in that of its weights.
        memory: the peaks of the device while the job was in the engine.
    """

    load_seconds: float
    encode_seconds: float
    upscale_seconds: float
    upscale_host_seconds: float
    denoise_seconds: float
    decode_seconds: float
    gpu_seconds: float
    steps: int
    iterations_per_second: float
    forwards: int
    mean_rows: float
    buckets: tuple[int, ...]
    memory: MemoryReading
    precision: str | None


@dataclass(frozen=True)
class Rendered:
    """A finished job: its image, [height, width, 3] uint8, and what it took."""

    image: NDArray[np.uint8]
    stats: EngineStats


class Ledger:
    """One job's account, open while it runs."""

    def __init__(self) -> None:
        self.load_seconds = 0.0
        self.encode_seconds = 0.0
        self.upscale_seconds = 0.0
        self.upscale_host_seconds = 0.0
        self.denoise_seconds = 0.0
        self.decode_seconds = 0.0
        self.gpu_seconds = 0.0
        self.steps = 0
        self.precision: str | None = None
        self._forwards = 0
        self._rows = 0
        self._buckets: set[int] = set()
        self._memory = MemoryReading(0, 0, 0, 0)

    def call(self, seconds: float, *, rows: int, forwards: int, bucket: int, whole: bool) -> None:
        """Book one call of the model: its share of the device, the rows it ran among, and whether
        it completes a step."""
        self.gpu_seconds += seconds
        self.steps += whole
        self._forwards += forwards
        self._rows += rows
        self._buckets.add(bucket)

    def ride(self, seconds: float, *, bucket: int) -> None:
        """Book a call of the model that another job made for both: this one's part of it."""
        self.gpu_seconds += seconds
        self._buckets.add(bucket)

    def charge(
        self, work: Literal["load", "encode", "decode"], seconds: float, *, share: float
    ) -> None:
        """Book what it took, and the job's share of the device in it."""
        if work == "load":
            self.load_seconds += seconds
        elif work == "encode":
            self.encode_seconds += seconds
        else:
            self.decode_seconds += seconds
        self.gpu_seconds += share

    def saw(self, reading: MemoryReading) -> None:
        """Book a reading of the device taken while the job was there."""
        seen = self._memory
        self._memory = MemoryReading(
            active=max(seen.active, reading.active),
            reserved=max(seen.reserved, reading.reserved),
            system_used=max(seen.system_used, reading.system_used),
            system_total=reading.system_total,
        )

    def close(self) -> EngineStats:
        return EngineStats(
            load_seconds=self.load_seconds,
            encode_seconds=self.encode_seconds,
            upscale_seconds=self.upscale_seconds,
            upscale_host_seconds=self.upscale_host_seconds,
            denoise_seconds=self.denoise_seconds,
            decode_seconds=self.decode_seconds,
            gpu_seconds=self.gpu_seconds,
            steps=self.steps,
            iterations_per_second=self.steps / max(self.denoise_seconds, 1e-9),
            forwards=self._forwards,
            mean_rows=self._rows / max(self._forwards, 1),
            buckets=tuple(sorted(self._buckets)),
            memory=self._memory,
            precision=self.precision,
        )

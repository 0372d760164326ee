"""What there is room for on a device now, and what work takes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from farm.spec.measurement import Call
from farm.worker.memory.experience import Experience
from farm.worker.memory.meter import Meter
from farm.worker.memory.planner import Learnt, Recorded, peak_bytes
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint


class Room:
    """One device, as the planner sees it.

    Args:
        experience: what was measured; grows with what is done here.
        meter: of the device, for what calls take.
    """

    def __init__(
        self,
        models: ModelCache,
        profile: MemoryProfile,
        experience: Experience,
        meter: Meter | None,
    ) -> None:
        self._models = models
        self._profile = profile
        self._experience = experience
        self._meter = meter

    @property
    def bytes(self) -> int:
        """Of all weights on the device, those of guests too."""
        return self._models.bytes + self._models.guest_bytes

    def clear(self, checkpoint: Checkpoint, pixels: int, rows: int) -> None:
        """Have guests leave, if so much work would not fit beside them. They were not planned for:
        to come back takes them a moment, and fewer rows would take everybody longer."""
        if not self._models.guest_bytes:
            return
        peak = peak_bytes(
            self._profile,
            checkpoint.family,
            pixels,
            rows,
            weights_bytes=self.bytes,
            learnt=self.learnt(checkpoint),
            recorded=self.recorded(checkpoint),
            encodes=True,
        )
        if peak > self._profile.memory_bytes:
            self._models.dismiss()

    @contextmanager
    def taking(self, call: Call) -> Iterator[None]:
        """Learn what the call in the block takes, the first times that there is one."""
        # Weights that come to the device meanwhile would count as the call's.
        if self._meter is None or self._models.loading or not self._experience.wants_bytes(call):
            yield
            return
        with self._meter.taking() as taken:
            yield
        if taken.bytes is not None and taken.outside is not None:
            self._experience.took(call, taken.bytes, taken.outside)

    def learnt(self, checkpoint: Checkpoint) -> Learnt:
        """What was measured of a checkpoint's calls."""
        return Learnt(checkpoint.unet_call, checkpoint.vae_call, self._experience)

    def recorded(self, checkpoint: Checkpoint) -> Recorded | None:
        """What recordings hold; None where none are made."""
        if not self._profile.cuda_graphs:
            return None
        held = dict(self._models.recorded)
        if not held:
            return None
        return Recorded(held.pop(checkpoint.name, 0), sum(held.values()))

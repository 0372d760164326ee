"""How many rows a forward may have: predicted first, corrected by what was measured.

Two numbers for each checkpoint and size. :meth:`RowLimits.allowed` is what forwards fill up to:
what fits, by the formula and by all that was measured, and of that no more than makes a forward
quicker for each of its rows. :meth:`RowLimits.pinned` is what a ``strict`` job's forward is
padded to, so it must be the same tomorrow: it is the formula's alone, which knows the profile and
nothing else. Only a forward that has run out of memory lowers it, as there the choice is between
another bucket and no image; infotext says which bucket it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from math import log

from farm.errors import DoesNotFit
from farm.spec.measurement import Call
from farm.spec.passes import Pass
from farm.worker.engine.decisions import Forward
from farm.worker.engine.passages import PictureLimits
from farm.worker.engine.requests import Denoise
from farm.worker.engine.room import Room
from farm.worker.engine.worth import Worth
from farm.worker.memory.admission import check_fits
from farm.worker.memory.experience import Experience
from farm.worker.memory.meter import Meter
from farm.worker.memory.planner import Recorded, peak_bytes, rows_allowed
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint

UNKNOWN_SECONDS = 1e-7
"""Of a pixel of a row, before anything was timed; then only proportions count."""


class RowLimits:
    """Rows allowed for each checkpoint and size on one device.

    Args:
        experience: what was measured; grows with what is done here.
        meter: of the device, for what calls take.

    Attributes:
        pictures: the same for decodings, encodings and tiles.
    """

    def __init__(
        self,
        models: ModelCache,
        profile: MemoryProfile,
        *,
        experience: Experience | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._models = models
        self._profile = profile
        self._experience = experience or Experience()
        self._room = Room(models, profile, self._experience, meter)
        self.pictures = PictureLimits(self._room, profile, self._experience)
        self._formula = Recorded() if profile.cuda_graphs else None
        self._worth = Worth(profile.buckets, self._experience)
        # By how calls are measured, not by name: another file may go by that some day.
        self._known: dict[tuple[Call, Call, int, int, bool], tuple[object, int]] = {}
        self._seconds: dict[Call, tuple[int, float]] = {}

    def check(
        self, checkpoint: Checkpoint, request: Denoise | Pass, *, encodes: bool = False
    ) -> None:
        """Raise :class:`farm.errors.DoesNotFit` if this size does not fit beside the weights.

        A size for which even a single row was too much is denoised with streamed weights, and one
        that fits without recorded forwards alone is denoised without.

        Args:
            encodes: whether a picture of that size is encoded before.
        """
        lone = self.call(checkpoint, request.width * request.height, 1)
        if self._experience.too_much(lone):
            checkpoint.stream()
        recorded = self._room.recorded(checkpoint)
        try:
            self._check_fits(checkpoint, request, recorded, encodes=encodes)
        except DoesNotFit:
            if recorded is None:
                raise
            self._check_fits(checkpoint, request, None, encodes=encodes)
            self._models.give_up_speed()

    def _check_fits(
        self,
        checkpoint: Checkpoint,
        request: Denoise | Pass,
        recorded: Recorded | None,
        *,
        encodes: bool,
    ) -> None:
        check_fits(
            self._profile,
            checkpoint.family,
            request.width,
            request.height,
            weights_bytes=self._models.bytes,
            learnt=self._room.learnt(checkpoint),
            recorded=recorded,
            encodes=encodes,
        )

    def allowed(self, name: str, width: int, height: int) -> int:
        """Most rows of one forward, at least 1; ``name`` must be resident.

        Counted beside all the weights the profile may ever hold, not those it holds now, so that
        it does not depend on who else is here.
        """
        return self._rows(name, width, height, learnt=True)

    def pinned(self, name: str, width: int, height: int) -> int:
        """Rows that a forward with a ``strict`` job is padded to; see this module."""
        return self._rows(name, width, height, learnt=False)

    def seconds(self, name: str, width: int, height: int, rows: int) -> float:
        """What a forward is expected to take; ``name`` must be resident.

        As it was timed, or else as the nearest one that was, by the pixels of all its rows.
        """
        call = self.call(self._models.peek(name), width * height, rows)
        found = self._seconds.get(call)
        if found is None or found[0] != self._experience.changes:
            self._seconds[call] = found = (self._experience.changes, self._expected(call))
        return found[1]

    def _expected(self, call: Call) -> float:
        work = call.pixels * call.rows
        known = {
            measured.call.pixels * measured.call.rows: measured.seconds
            for measured in (*self._experience.like(call), self._experience.of(call))
            if measured.seconds is not None
        }
        if not known:
            return work * UNKNOWN_SECONDS
        nearest = min(known, key=lambda other: abs(log(other / work)))
        return known[nearest] * work / nearest

    def beside(self, pixels: int, name: str, width: int, height: int) -> bool:
        """Whether a picture of so many pixels can be decoded while as many rows of this
        checkpoint and size as are allowed are denoised; ``name`` must be resident."""
        checkpoint = self._models.peek(name)
        peak = peak_bytes(
            self._profile,
            checkpoint.family,
            width * height,
            self.allowed(name, width, height),
            weights_bytes=self._profile.weights_bytes + self._models.guest_bytes,
            learnt=self._room.learnt(checkpoint),
            beside=pixels,
            recorded=self._room.recorded(checkpoint),
        )
        return peak <= self._profile.memory_bytes

    def halve(self, name: str, width: int, height: int, *, rows: int) -> bool:
        """Remember that ``rows`` of this size ran out of memory; False if fewer cannot be."""
        if rows == 1:
            return False
        self._experience.failed(self.call(self._models.peek(name), width * height, rows))
        return True

    def give_up(self, name: str, width: int, height: int) -> None:
        """Remember that not even one row of this size fits, with nothing left to leave."""
        self._experience.failed(self.call(self._models.peek(name), width * height, 1))

    @contextmanager
    def measuring(self, checkpoint: Checkpoint, forward: Forward) -> Iterator[None]:
        """Learn what the forward in the block takes, the first times that there is one."""
        call = self.call(checkpoint, forward.width * forward.height, forward.bucket)
        self._room.clear(checkpoint, call.pixels, call.rows)
        with nullcontext() if forward.lift else self._room.taking(call):
            yield

    def timed(self, checkpoint: Checkpoint, size: Denoise, *, rows: int, seconds: float) -> None:
        """Learn what a forward of an image's size took on the clock."""
        call = self.call(checkpoint, size.width * size.height, rows)
        self._experience.timed(call, seconds)
        self._worth.timed(call)

    def call(self, checkpoint: Checkpoint, pixels: int, rows: int) -> Call:
        """What a forward of this checkpoint is measured as."""
        return replace(checkpoint.unet_call, pixels=pixels, rows=rows)

    def _rows(self, name: str, width: int, height: int, *, learnt: bool) -> int:
        checkpoint = self._models.peek(name)
        shape = (checkpoint.unet_call, checkpoint.vae_call, width, height, learnt)
        recorded = self._room.recorded(checkpoint) if learnt else self._formula
        state = (self._experience.changes, self._worth.changes, recorded)
        found = self._known.get(shape)
        if found is None or found[0] != state:
            rows = rows_allowed(
                self._profile,
                checkpoint.family,
                width,
                height,
                weights_bytes=self._profile.weights_bytes,
                learnt=self._room.learnt(checkpoint) if learnt else None,
                recorded=recorded,
            )
            call = self.call(checkpoint, width * height, max(1, rows))
            while call.rows > 1 and self._experience.too_much(call):
                call = replace(call, rows=call.rows // 2)
            rows = self._worth.rows(call) if learnt else call.rows
            self._known[shape] = found = (state, rows)
        return found[1]

"""Pictures that models enlarge, a tile in each turn of the engine."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from time import monotonic
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch

from farm.errors import DoesNotFit, NumericFailure, UpscalerError
from farm.worker.engine.enlarging import Enlarging, enlarging
from farm.worker.engine.failures import device_lost
from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.passages import PictureLimits
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.readings import Reading, Readings
from farm.worker.engine.relief import made_room, relieved
from farm.worker.engine.requests import Upscale
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.memory.exhaustion import HostExhausted, out_of_memory
from farm.worker.models.cache import RELENT, ModelCache
from farm.worker.models.upscaler import PlacedUpscaler, Upscaler, UpscalerShelf

log = logging.getLogger(__name__)

TILE, LEAST_TILE = 192, 48
"""Pixels of a side; the first as in webui."""
MOST_PIXELS = 2**28
"""Of what a model makes, before it is resized: 4 times a picture of 16 megapixels."""
LOOK = 0.05
"""Seconds between two looks at what others ask for, while there is nothing to do but to read."""


class Upscales:
    """Enlarges pictures between steps. Between two tiles others have their turn, a job may be
    cancelled, and the watchdog sees that something goes on.

    A model is read while the device goes on with other jobs. While it is at work it is a guest of
    the device, which leaves where memory is wanted, and otherwise in host memory. Its tiles are as
    large as fits by plan. Where memory runs out nevertheless they become smaller, and stay so; that
    harms nobody else, so others leave only after that, and only those that nobody needs. With them
    gone the host takes over, which is slow but for this picture alone; the device is tried again
    after :data:`farm.worker.models.cache.RELENT` seconds.

    Args:
        limits: plans tiles, and learns what they take.
    """

    def __init__(
        self,
        jobs: Jobs,
        models: ModelCache,
        pulse: Pulse,
        *,
        limits: PictureLimits,
        shelf: UpscalerShelf,
        device: torch.device,
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._pulse = pulse
        self._limits = limits
        self._shelf = shelf
        self._dtype = limits.dtype
        self._device = device
        self._tiles: WeakKeyDictionary[Upscaler, int] = WeakKeyDictionary()
        self._too_large: WeakKeyDictionary[Upscaler, float] = WeakKeyDictionary()
        self._weak: WeakSet[Upscaler] = WeakSet()
        self._overflowed: WeakSet[Job] = WeakSet()
        self._readings = Readings(shelf.get)
        self._read: dict[Job, Reading] = {}
        self._under_way: dict[Job, Enlarging] = {}
        self._at_work: Enlarging | None = None
        models.guests.append(self)

    @property
    def held(self) -> Mapping[str, int]:
        """See :class:`UpscalerShelf`."""
        return self._shelf.held

    @property
    def bytes(self) -> int:
        """Device memory of the models at work."""
        here = {each.model for each in self._under_way.values() if each.coming is None}
        return sum(model.bytes for model in here if model)

    def leave(self) -> bool:
        """Have models leave the device that wait for their next tile; they come back for it. False
        where there was none."""
        kept = self._at_work and self._at_work.model
        waiting = [
            each
            for each in self._under_way.values()
            if each.model not in (None, kept) and each.coming is None
        ]
        for each in waiting:
            each.model = None
        return bool(waiting)

    def book(self) -> None:
        """Have models read that jobs wait for, send on those whose model is there, and take what
        the host has made. Waits for nothing."""
        self.forget()
        for job in self._jobs:
            if not isinstance(job.request, Upscale) or not (job.aside and job.leads):
                continue
            if job in self._under_way:
                with self._jobs.blame([job]):
                    self._take(job.request, job, self._under_way[job])
            elif job not in self._read:
                self._read[job] = self._readings.of(job.request.upscaler)
            elif self._read[job].over:
                with self._jobs.blame([job]):
                    self._have(job.request, job)

    def settle(self) -> None:
        """Wait a moment for a model that is being read, or for the host."""
        awaited: list[Future[Any]] = [read.future for read in self._read.values() if not read.over]
        awaited += [each.coming for each in self._under_way.values() if each.coming]
        wait(awaited, LOOK)

    def forget(self) -> None:
        """Let go of what was for jobs that have left."""
        for job in {*self._read, *self._under_way}:
            if job not in self._jobs or not isinstance(job.request, Upscale):
                self._read.pop(job, None)
                self._under_way.pop(job, None)

    def work(self, request: Upscale, job: Job) -> None:
        """Enlarge one tile more; with the last one its job goes on.

        Raises:
            UpscalerError: the model fails.
            NumericFailure: it makes no numbers of the picture.
        """
        with self._pulse.doing("encode", jobs=[job.key]):
            watch = Stopwatch(self._device)
            try:
                # Lest its checkpoint leaves for it, and is loaded for its next tile.
                with self._models.use(request.checkpoint):
                    self._step(request, job)
            finally:
                self._at_work = None
                watch.stop()
                seconds = watch.seconds()
                self._pulse.worked("encode", {job.key: seconds}, request.checkpoint)
                job.ledger.charge("encode", seconds, share=seconds)
                job.ledger.upscale_seconds += seconds
        self._send_on(job)

    def _send_on(self, job: Job) -> None:
        under_way = self._under_way.get(job)
        if under_way and under_way.mosaic.next is None:
            del self._under_way[job]
            self._jobs.send(job, under_way.mosaic.picture)

    def _have(self, request: Upscale, job: Job) -> None:
        """The model that a job waits for was read, or cannot be."""
        try:
            upscaler = self._read[job].result()
        except Exception as error:
            del self._read[job]
            if isinstance(error, HostExhausted) and made_room(self._models, error):
                return  # the next turn begins anew
            raise
        if monotonic() < self._too_large.get(upscaler, 0.0):
            begun = relieved(self._models, partial(self._begun, request, job, by_host=True))
            begun.begin_tile(request.picture.value)
            self._under_way[job] = begun
        else:
            job.aside = False

    def _take(self, request: Upscale, job: Job, under_way: Enlarging) -> None:
        """Put the tile that the host has made, and have it make the next."""
        if under_way.coming is None or not under_way.coming.done():
            return
        try:
            tile, seconds = under_way.coming.result()
        except HostExhausted as error:
            if not made_room(self._models, error):
                raise
        except Exception as error:
            raise _failed(request, error) from error
        else:
            job.ledger.upscale_host_seconds += seconds
            if not bool(tile.isfinite().all()):
                raise _not_finite(request)
            relieved(self._models, partial(under_way.put, tile))
        if under_way.mosaic.next:
            under_way.begin_tile(request.picture.value)
        self._send_on(job)

    def _step(self, request: Upscale, job: Job) -> None:
        under_way = self._under_way.get(job)
        if under_way is None:
            under_way = relieved(self._models, partial(self._begun, request, job))
            self._under_way[job] = under_way
        self._at_work = under_way
        picture = request.picture.value[under_way.mosaic.next]
        try:
            under_way.model = model = under_way.model or self._placed(under_way)
            with self._limits.enlarging(model, picture[..., 0].numel()):
                tile = model(picture)
                finite = bool(tile.isfinite().all())
        except Exception as error:
            self._recover(error, request, job)
            return
        if finite:
            relieved(self._models, partial(under_way.put, tile))
        else:
            self._weaker(request, job)

    def _begun(self, request: Upscale, job: Job, *, by_host: bool = False) -> Enlarging:
        upscaler, picture = self._read[job].result(), request.picture.value
        height, width = picture.shape[:2]
        if height * width * upscaler.scale**2 > MOST_PIXELS:
            raise _too_large(request, width * upscaler.scale, height * upscaler.scale)
        if by_host:
            return enlarging(upscaler, picture, dtype=torch.float32, tile=TILE)
        # A strict picture does not depend on who came before.
        strict = job.spec.strict
        weak = job in self._overflowed or (upscaler in self._weak and not strict)
        dtype = upscaler.precision(torch.float32 if weak else self._dtype)
        sides = _sides(self._tiles.get(upscaler, TILE))
        tile = self._limits.side(upscaler, dtype, sides, strict=strict)
        return enlarging(upscaler, picture, dtype=dtype, tile=tile)

    def _placed(self, under_way: Enlarging) -> PlacedUpscaler:
        """The model on the device, where another picture may have it already."""
        upscaler, dtype = under_way.upscaler, under_way.dtype
        for each in self._under_way.values():
            model = each.model
            if model and each.coming is None and (model.of, model.dtype) == (upscaler, dtype):
                return model
        if self._limits.crowded(upscaler, dtype, under_way.tile):
            self.leave()
        return upscaler.placed(dtype, self._device)

    def _recover(self, error: Exception, request: Upscale, job: Job) -> None:
        """After a tile that failed: once more where there is more memory now, or anew in smaller
        ones, or by the host."""
        if device_lost(error):
            raise error
        if not out_of_memory(error):
            raise _failed(request, error) from error
        traceback.clear_frames(error.__traceback__)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self._models.give_up_speed():
            return
        under_way = self._under_way[job]
        upscaler, smaller = under_way.upscaler, under_way.tile // 2
        if under_way.model and smaller >= LEAST_TILE:
            self._tiles[upscaler] = min(smaller, self._tiles.get(upscaler, TILE))
            log.warning("no memory for tiles; those of %s are now %d wide", job.key, smaller)
            del self._under_way[job]
        elif self._alone(under_way):
            return
        elif self._device.type == "cpu":
            raise error
        else:
            log.warning("no memory for %s on the device; the host takes over", request.upscaler)
            self._too_large[upscaler] = monotonic() + RELENT
            del self._under_way[job]
            job.aside = True

    def _alone(self, under_way: Enlarging) -> bool:
        """Whether others left. Once for a picture: those that come back need their place as much,
        and would be loaded and sent away in turns."""
        before, under_way.alone = under_way.alone, True
        left = 0
        while not before and self._models.shed_idle():
            left += 1
        return left > 0

    def _weaker(self, request: Upscale, job: Job) -> None:
        """Begin anew in float32, if that is not what it was."""
        under_way = self._under_way.pop(job)
        if under_way.dtype == torch.float32:
            raise _not_finite(request)
        log.warning("%s overflows in %s", request.upscaler, under_way.dtype)
        self._weak.add(under_way.upscaler)
        self._overflowed.add(job)


def _sides(most: int) -> Sequence[int]:
    """Of tiles, the largest first."""
    sides = [most]
    while sides[-1] // 2 >= LEAST_TILE:
        sides.append(sides[-1] // 2)
    return sides


def _not_finite(request: Upscale) -> NumericFailure:
    return NumericFailure(
        f"The upscaler {request.upscaler} makes no numbers of this picture.",
        field="hires_upscaler",
        value=request.upscaler,
        remedy="Use another upscaler.",
    )


def _too_large(request: Upscale, width: int, height: int) -> DoesNotFit:
    return DoesNotFit(
        f"The upscaler {request.upscaler} would make {width}x{height} of this picture, and "
        f"{MOST_PIXELS >> 20} megapixels are the most.",
        field="hires_upscaler",
        value=request.upscaler,
        remedy="Use one that enlarges less, or make the first pass smaller.",
    )


def _failed(request: Upscale, error: Exception) -> UpscalerError:
    told = (str(error).splitlines() or [""])[0][:200]
    log.warning("%s failed", request.upscaler, exc_info=error)
    return UpscalerError(
        f"The upscaler {request.upscaler} fails at this picture: {type(error).__name__}: {told}",
        field="hires_upscaler",
        value=request.upscaler,
        remedy="Use another upscaler.",
    )

"""Pictures that models enlarge, a tile in each turn of the engine."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor

from farm.errors import DoesNotFit, NumericFailure, UpscalerError
from farm.worker.engine.failures import device_lost
from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.readings import Reading, Readings
from farm.worker.engine.relief import made_room, relieved
from farm.worker.engine.requests import Upscale
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.memory.exhaustion import HostExhausted, on_host, out_of_memory
from farm.worker.models.cache import ModelCache
from farm.worker.models.tiles import Mosaic
from farm.worker.models.upscaler import PlacedUpscaler, Upscaler, UpscalerShelf

log = logging.getLogger(__name__)

TILE, OVERLAP = 192, 8
"""Pixels of a side, as in webui."""
LEAST_TILE = 48
MOST_PIXELS = 2**28
"""Of what a model makes, before it is resized: 4 times a picture of 16 megapixels."""
LOOK = 0.05
"""Seconds between two looks at what others ask for, while there is nothing to do but to read."""


@dataclass
class _Enlarging:
    """A picture under way, what enlarges it, and in tiles of how many pixels of a side.

    Attributes:
        model: None while others need its place on the device.
    """

    upscaler: Upscaler
    dtype: torch.dtype
    model: PlacedUpscaler | None
    mosaic: Mosaic
    tile: int


class Upscales:
    """Enlarges pictures between steps. Between two tiles others have their turn, a job may be
    cancelled, and the watchdog sees that something goes on.

    A model is read while the device goes on with other jobs. It is on the device while it is at
    work, and otherwise in host memory. A tile has the memory that was planned for steps and
    decodings, as none of them is at work meanwhile. Where it runs out nevertheless the model's
    tiles become smaller, and stay so; that harms nobody else, so others leave only after that.
    """

    def __init__(
        self,
        jobs: Jobs,
        models: ModelCache,
        pulse: Pulse,
        *,
        shelf: UpscalerShelf,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._pulse = pulse
        self._shelf = shelf
        self._dtype = dtype
        self._device = device
        self._tiles: WeakKeyDictionary[Upscaler, int] = WeakKeyDictionary()
        self._weak: WeakSet[Upscaler] = WeakSet()
        self._overflowed: WeakSet[Job] = WeakSet()
        self._readings = Readings(shelf.get)
        self._read: dict[Job, Reading] = {}
        self._under_way: dict[Job, _Enlarging] = {}

    @property
    def held(self) -> Mapping[str, int]:
        """See :class:`UpscalerShelf`."""
        return self._shelf.held

    def book(self) -> None:
        """Have models read that jobs wait for, and send on those whose model is there. Waits for
        nothing."""
        self.forget()
        for job in self._jobs:
            if not isinstance(job.request, Upscale) or not (job.aside and job.leads):
                continue
            if job not in self._read:
                self._read[job] = self._readings.of(job.request.upscaler)
            elif self._read[job].over:
                self._have(job)

    def settle(self) -> None:
        """Wait a moment for a model that is being read."""
        wait([read.future for read in self._read.values() if not read.over], LOOK)

    def give_way(self) -> bool:
        """Memory ran out beside models that wait for their next tile: they leave the device until
        then. False where there was none."""
        waiting = [each for each in self._under_way.values() if each.model]
        for each in waiting:
            each.model = None
        return bool(waiting)

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
                done = self._step(request, job)
            finally:
                watch.stop()
                seconds = watch.seconds()
                self._pulse.worked("encode", {job.key: seconds}, request.checkpoint)
                job.ledger.charge("encode", seconds, share=seconds)
                job.ledger.upscale_seconds += seconds
        if done:
            mosaic = self._under_way.pop(job).mosaic
            self._jobs.send(job, mosaic.picture)

    def _have(self, job: Job) -> None:
        """The model that a job waits for was read, or cannot be."""
        with self._jobs.blame([job]):
            try:
                self._read[job].result()
            except Exception as error:
                del self._read[job]
                if isinstance(error, HostExhausted) and made_room(self._models, error):
                    return  # the next turn begins anew
                raise
            job.aside = False

    def _step(self, request: Upscale, job: Job) -> bool:
        """Whether the picture is whole."""
        under_way = self._under_way.get(job)
        if under_way is None:
            upscaler = self._read[job].result()
            under_way = relieved(self._models, partial(self._begun, request, upscaler, job))
            self._under_way[job] = under_way
        if under_way.model is None:
            under_way.model = relieved(self._models, partial(self._placed, under_way))
        picture = request.picture.value[under_way.mosaic.next]
        try:
            tile = under_way.model(picture)
            finite = bool(tile.isfinite().all())
        except Exception as error:
            self._recover(error, request, job)
            return False
        if not finite:
            self._weaker(request, job)
            return False
        relieved(self._models, partial(_put, under_way.mosaic, tile))
        return under_way.mosaic.next is None

    def _begun(self, request: Upscale, upscaler: Upscaler, job: Job) -> _Enlarging:
        # A strict picture does not depend on who came before.
        weak = job in self._overflowed or (upscaler in self._weak and not job.spec.strict)
        dtype = upscaler.precision(torch.float32 if weak else self._dtype)
        height, width = request.picture.value.shape[:2]
        if height * width * upscaler.scale**2 > MOST_PIXELS:
            raise _too_large(request, width * upscaler.scale, height * upscaler.scale)
        tile = self._tiles.get(upscaler, TILE)
        with on_host("a larger picture"):
            mosaic = Mosaic(width, height, scale=upscaler.scale, tile=tile, overlap=OVERLAP)
        return _Enlarging(upscaler, dtype, None, mosaic, tile)

    def _placed(self, under_way: _Enlarging) -> PlacedUpscaler:
        """The model on the device, where another picture may have it already."""
        upscaler, dtype = under_way.upscaler, under_way.dtype
        here = (each.model for each in self._under_way.values() if each.model)
        same = (each for each in here if (each.of, each.dtype) == (upscaler, dtype))
        return next(same, None) or upscaler.placed(dtype, self._device)

    def _recover(self, error: Exception, request: Upscale, job: Job) -> None:
        """After a tile that failed: once more where there is more memory now, or anew in smaller
        ones."""
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
        if smaller >= LEAST_TILE:
            self._tiles[upscaler] = min(smaller, self._tiles.get(upscaler, TILE))
            log.warning("no memory for tiles; those of %s are now %d wide", job.key, smaller)
            del self._under_way[job]
        elif not made_room(self._models, error):
            raise error

    def _weaker(self, request: Upscale, job: Job) -> None:
        """Begin anew in float32, if that is not what it was."""
        under_way = self._under_way.pop(job)
        if under_way.dtype == torch.float32:
            raise NumericFailure(
                f"The upscaler {request.upscaler} makes no numbers of this picture.",
                field="hires_upscaler",
                value=request.upscaler,
                remedy="Use another upscaler.",
            )
        log.warning("%s overflows in %s", request.upscaler, under_way.dtype)
        self._weak.add(under_way.upscaler)
        self._overflowed.add(job)


def _put(mosaic: Mosaic, tile: Tensor) -> None:
    with on_host("a larger picture"):
        mosaic.put(tile)


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

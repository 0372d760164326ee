"""Pictures that models enlarge, a tile in each turn of the engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from weakref import WeakSet

import torch

from farm.errors import NumericFailure
from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.relief import relieved
from farm.worker.engine.requests import Upscale
from farm.worker.engine.stopwatch import Stopwatch
from farm.worker.memory.exhaustion import on_host, out_of_memory
from farm.worker.models.cache import ModelCache
from farm.worker.models.tiles import Mosaic
from farm.worker.models.upscaler import PlacedUpscaler, Upscaler, UpscalerShelf

log = logging.getLogger(__name__)

TILE, OVERLAP = 192, 8
"""Pixels of a side, as in webui."""
LEAST_TILE = 32


@dataclass
class _Enlarging:
    """A picture under way, and what enlarges it."""

    model: PlacedUpscaler
    mosaic: Mosaic


class Upscales:
    """Enlarges pictures between steps. Between two tiles a job may be cancelled, and the watchdog
    sees that something goes on.

    A model is on the device while it is at work, and otherwise in host memory. A tile has the
    memory that was planned for steps and decodings, as none of them is at work meanwhile; where it
    runs out nevertheless tiles become smaller, and stay so.
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
        self._tile = TILE
        self._weak: WeakSet[Upscaler] = WeakSet()
        self._under_way: dict[Job, _Enlarging] = {}

    @property
    def held(self) -> Mapping[str, int]:
        """See :class:`UpscalerShelf`."""
        return self._shelf.held

    def forget(self) -> None:
        """Let go of what was for jobs that have left."""
        for job in list(self._under_way):
            if job not in self._jobs or not isinstance(job.request, Upscale):
                del self._under_way[job]

    def work(self, request: Upscale, job: Job) -> None:
        """Enlarge one tile more; with the last one its job goes on.

        Raises:
            UpscalerError: there is no such upscaler, or its file is unusable.
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
        if done:
            mosaic = self._under_way.pop(job).mosaic
            self._jobs.send(job, mosaic.picture)

    def _step(self, request: Upscale, job: Job) -> bool:
        """Whether the picture is whole."""
        under_way = self._under_way.get(job)
        if under_way is None:
            upscaler = self._shelf.get(request.upscaler)
            under_way = relieved(self._models, partial(self._begun, request, upscaler))
            self._under_way[job] = under_way
        picture = request.picture.value[under_way.mosaic.next]
        try:
            tile = relieved(self._models, partial(under_way.model, picture))
        except Exception as error:
            self._smaller(error)
            del self._under_way[job]
            return False
        if bool(tile.isfinite().all()):
            with on_host("a larger picture"):
                under_way.mosaic.put(tile)
            return under_way.mosaic.next is None
        self._weaker(request, under_way)
        del self._under_way[job]
        return False

    def _begun(self, request: Upscale, upscaler: Upscaler) -> _Enlarging:
        dtype = upscaler.precision(torch.float32 if upscaler in self._weak else self._dtype)
        here = (each.model for each in self._under_way.values())
        same = (each for each in here if (each.of, each.dtype) == (upscaler, dtype))
        model = next(same, None) or upscaler.placed(dtype, self._device)
        height, width = request.picture.value.shape[:2]
        with on_host("a larger picture"):
            mosaic = Mosaic(width, height, scale=upscaler.scale, tile=self._tile, overlap=OVERLAP)
        return _Enlarging(model, mosaic)

    def _smaller(self, error: Exception) -> None:
        """Begin anew with smaller tiles, if it is memory that was lacking."""
        if not out_of_memory(error) or self._tile // 2 < LEAST_TILE:
            raise error
        self._tile //= 2
        log.warning("no memory to enlarge tiles; from now on they are %d wide", self._tile)

    def _weaker(self, request: Upscale, under_way: _Enlarging) -> None:
        """Begin anew in float32, if that is not what it was."""
        if under_way.model.dtype == torch.float32:
            raise NumericFailure(
                f"The upscaler {request.upscaler} makes no numbers of this picture.",
                field="hires_upscaler",
                value=request.upscaler,
                remedy="Use another upscaler.",
            )
        log.warning("%s overflows in %s", request.upscaler, under_way.model.dtype)
        self._weak.add(under_way.model.of)

"""Decide, run, record: everything that is under way on one device. Knows no threads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic, perf_counter
from typing import Any

import torch

from farm.errors import Conflict
from farm.spec.kinship import check_job
from farm.spec.networks import Loras
from farm.worker.accountant import Accountant
from farm.worker.engine.batcher import Batcher
from farm.worker.engine.calibration import Calibration
from farm.worker.engine.decisions import Decode, Encode, Forward, Load
from farm.worker.engine.decodes import Decodes
from farm.worker.engine.denoiser import Denoiser
from farm.worker.engine.encodes import Encodes
from farm.worker.engine.heap import Heap
from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.limits import RowLimits
from farm.worker.engine.pictures import Pictures
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.relief import relieved
from farm.worker.engine.reports import OnPreview, Preview, Progress, Reports
from farm.worker.engine.requests import EncodeImage, EncodeText, Request, Upscale
from farm.worker.engine.shared import Shared
from farm.worker.engine.texts import TextCache, text_bytes
from farm.worker.engine.upscales import Upscales
from farm.worker.engine.wardrobe import Wardrobe
from farm.worker.memory.experience import Experience
from farm.worker.memory.matmul import obey
from farm.worker.memory.meter import Meter
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.embeddings import EmbeddingShelf
from farm.worker.models.library import family_of, version_of
from farm.worker.models.patches import Side
from farm.worker.models.preview import Previews
from farm.worker.models.upscaler import UpscalerShelf

log = logging.getLogger(__name__)


class Core:
    """Turns jobs into images, one decision at a time.

    Args:
        on_progress: called with (key, steps done, steps), a few times a second for each job.
        watched, on_preview: see :class:`farm.worker.engine.reports.Preview`.
        assets: LoRAs and embeddings that prompts may name.
        text_cache_bytes: device memory for encoded texts.
        shared_bytes: host memory for what several jobs ask for.
        experience: what forwards were measured to take, and where to tell it.
        accountant: told where the device's time goes.
    """

    def __init__(
        self,
        models: ModelCache,
        profile: MemoryProfile,
        device: torch.device,
        *,
        on_progress: Progress | None = None,
        watched: Callable[[str], bool] = lambda _: False,
        on_preview: OnPreview | None = None,
        assets: Iterable[AssetFile] = (),
        text_cache_bytes: int = 64 * 2**20,
        shared_bytes: int = 64 * 2**20,
        accountant: Accountant | None = None,
        experience: Experience | None = None,
    ) -> None:
        self._models = models
        self._wardrobe = Wardrobe(models, profile, assets)

        def made_with() -> object:
            """A checkpoint of another file reads texts otherwise, as do LoRAs and embeddings."""
            return version_of(assets), models.replaced

        self._texts = TextCache(text_cache_bytes, made_with, text_bytes)
        obey(profile, device)
        self._heap = Heap() if device.type == "cpu" else None
        meter, experience = Meter(device), experience or Experience()
        shared = Shared(shared_bytes, made_with)
        check = partial(check_job, family=partial(family_of, assets))
        self.jobs = Jobs(self._texts, shared, meter, models=models, check=check)
        self.pulse = Pulse(accountant)
        self._limits = limits = RowLimits(models, profile, experience=experience, meter=meter)
        passes = limits.pictures
        self.calibration = Calibration(models, profile, device, experience=experience, meter=meter)
        self._batcher = Batcher(
            limits.allowed, profile.buckets, rows_pinned=limits.pinned, seconds=limits.seconds
        )
        self._encodes = Encodes(
            self.jobs,
            models,
            self.pulse,
            texts=self._texts,
            embeddings=EmbeddingShelf(assets),
            device=device,
        )
        self._pictures = Pictures(self.jobs, models, self.pulse, limits=passes, device=device)
        self.upscales = Upscales(
            self.jobs, models, self.pulse, limits=passes, shelf=UpscalerShelf(assets), device=device
        )
        self._decodes = Decodes(
            self.jobs,
            models,
            self.pulse,
            limits=passes,
            device=device,
            room_beside=self._room_beside,
        )
        self._reports = Reports(
            self.jobs,
            device,
            on_progress=on_progress,
            preview=on_preview and Preview(Previews(assets, device), watched, on_preview),
        )
        self._denoiser = Denoiser(
            self.jobs,
            models,
            self.pulse,
            limits=limits,
            decodes=self._decodes,
            device=device,
            reports=self._reports,
        )

    def turn(self) -> None:
        """Do the one thing that is best done next."""
        if self._wardrobe.changed():
            self._denoiser.settle()
            self._decodes.settle()
            self._wardrobe.clear()
        self._relent()
        self._reports.deliver()
        self._encodes.book()
        self._decodes.book()
        self._pictures.book()
        self.upscales.book()
        waiting = [job.waiting for job in self.jobs.active]
        if self._decodes.busy:
            waiting = [each for each in waiting if each.stage != "decode"]
        resident = self._models.resident
        self._tidy()
        decision = self._batcher.decide(waiting, resident, monotonic())
        here = {*resident, decision.checkpoint} if isinstance(decision, Load) else resident
        coming = dict.fromkeys(each.checkpoint for each in waiting)
        self._models.need({name for job in self.jobs for name in job.checkpoints})
        self._models.prefetch([name for name in coming if name not in here])
        with torch.no_grad():
            match decision:
                case Load() if self._decodes.busy:
                    # One at a time all finished latents go first, lest their checkpoint leave.
                    self._decodes.settle()
                case Load():
                    self._load(decision.checkpoint)
                case Encode():
                    self._encode(self.jobs[decision.order])
                case Decode():
                    self._decodes.start(self.jobs[decision.order])
                case Forward():
                    self._forward(decision)
                case None if self._decodes.busy:
                    self._decodes.settle()
                case None:
                    self._pictures.settle()
                    self.upscales.settle()

    def rest(self) -> None:
        """Let go of what is kept between steps, as there is nothing to do."""
        with self.pulse.turning():
            self._encodes.settle()
            self._decodes.settle()
            self._denoiser.rest()
            self.upscales.forget()
            self._reports.rest()
        self._models.need(())
        self._tidy()
        self.pulse.accountant.rest()

    def _tidy(self) -> None:
        if self._heap:
            self._heap.tidy(self._models.resident)

    def _relent(self) -> None:
        """Have those leave that memory ran out beside, long ago: they come back whole."""
        for name in () if self._models.loading else self._models.squeezed:
            self._decodes.settle()
            self._denoiser.settle()
            log.info("%s was streamed for want of memory; it is read anew", name)
            with suppress(Conflict):
                self._models.evict(name)

    def _load(self, checkpoint: str) -> None:
        """Load for all who wait for this checkpoint; if it fails, it fails for all of them."""
        waiting = (job for job in self.jobs if not job.aside)
        jobs = [job for job in waiting if job.waiting.checkpoint == checkpoint]
        self._denoiser.settle()
        with self.jobs.blame(jobs), self._loading(jobs, checkpoint):
            relieved(self._models, lambda: self._models.get(checkpoint))

    def _encode(self, job: Job) -> None:
        """Encode a picture, or enlarge it, or texts for all who wait for them."""
        request = job.request
        if not isinstance(request, EncodeText):
            self._decodes.settle()  # One at a time: memory is planned for that.
            with self._spending(job), self.jobs.blame([job]):
                self._picture(request, job)
            return
        requests = self._encodes.along(request)
        jobs = self._encodes.waiting(requests)
        with self.jobs.blame(jobs), self._models.use(request.checkpoint) as checkpoint:
            self._wear(checkpoint, "text", request.loras, jobs)
            self._encodes.encode(requests, checkpoint)

    def _picture(self, request: Request, job: Job) -> None:
        if isinstance(request, Upscale):
            self.upscales.work(request, job)
            return
        assert isinstance(request, EncodeImage)
        with self._models.use(request.checkpoint) as checkpoint:
            self._pictures.encode(request, checkpoint, job)

    @contextmanager
    def _spending(self, job: Job) -> Iterator[None]:
        """Count what the block takes as a part of the job's group's turn."""
        waiting, began = job.waiting, monotonic()
        try:
            yield
        finally:
            ended = monotonic()
            self._batcher.spent(waiting, ended - began, ended)

    def _forward(self, forward: Forward) -> None:
        jobs = self.jobs.present(forward.orders)
        with self.jobs.blame(jobs), self._models.use(forward.checkpoint) as checkpoint:
            self._wear(checkpoint, "unet", forward.loras, jobs)
            with self.pulse.doing("denoise", **_detail(forward, jobs)):
                self._denoiser.forward(forward, checkpoint)

    def _wear(self, checkpoint: Checkpoint, side: Side, loras: Loras, jobs: Sequence[Job]) -> None:
        """Have these LoRAs, and no others, on the weights. Changing them counts as loading."""
        if checkpoint.worn(side) == loras:
            return
        self._denoiser.settle()
        with self._loading(jobs, checkpoint.name, loras=[lora.name for lora in loras]):
            relieved(self._models, lambda: self._wardrobe.put_on(checkpoint, side, loras))

    @contextmanager
    def _loading(self, jobs: Sequence[Job], checkpoint: str, **detail: Any) -> Iterator[None]:
        """Charge jobs with what the block takes, each the same, even if it fails."""
        with self.pulse.doing("load", checkpoint=checkpoint, **detail):
            began = perf_counter()
            try:
                yield
            finally:
                seconds = perf_counter() - began
                share = seconds / len(jobs)
                self.pulse.worked("load", {job.key: share for job in jobs}, checkpoint)
                for job in jobs:
                    job.ledger.charge("load", seconds, share=share)

    def _room_beside(self, job: Job) -> bool:
        """Whether the latent of a job can be decoded while any of the others is denoised."""
        pixels = job.waiting.width * job.waiting.height
        shapes = {
            (each.checkpoint, each.width, each.height)
            for each in (other.waiting for other in self.jobs)
            if each.checkpoint in self._models.resident
        }
        return all(self._limits.beside(pixels, *shape) for shape in shapes)


def _detail(forward: Forward, jobs: Sequence[Job]) -> dict[str, Any]:
    """What the timeline says of a forward."""
    return {
        "checkpoint": forward.checkpoint,
        "size": f"{forward.width}x{forward.height}",
        "bucket": forward.bucket,
        "jobs": [job.key for job in jobs],
    }

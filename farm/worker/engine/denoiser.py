"""Forwards of many jobs: run them, book them, and get over those that fail."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from farm.errors import InvalidInput
from farm.spec.hires import PICTURE_UPSCALERS
from farm.worker.engine.adaptive import AdaptiveSlot
from farm.worker.engine.decisions import Forward
from farm.worker.engine.decodes import Decodes
from farm.worker.engine.failures import DeviceLost, device_lost
from farm.worker.engine.job import Job
from farm.worker.engine.jobs import Jobs
from farm.worker.engine.limits import RowLimits
from farm.worker.engine.pulse import Pulse
from farm.worker.engine.relief import made_room, relieved
from farm.worker.engine.reports import Reports
from farm.worker.engine.requests import Denoise
from farm.worker.engine.rescues import Rescues
from farm.worker.engine.runner import Runner, Stepped
from farm.worker.engine.slot import Slot
from farm.worker.memory.exhaustion import HostExhausted, out_of_memory
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.samplers import compile_program

log = logging.getLogger(__name__)


class Denoiser:
    """Takes jobs step by step from noise to latent.

    A step is booked one step late, when the next one already keeps the device at work.
    """

    def __init__(
        self,
        jobs: Jobs,
        models: ModelCache,
        pulse: Pulse,
        *,
        limits: RowLimits,
        decodes: Decodes,
        device: torch.device,
        reports: Reports,
    ) -> None:
        self._jobs = jobs
        self._models = models
        self._limits = limits
        self._pulse = pulse
        self._decodes = decodes
        self._device = device
        self._reports = reports
        self._runner = Runner(device)
        self._running: tuple[Stepped, list[Job], Checkpoint] | None = None
        self._rescues = Rescues(jobs)

    def forward(self, forward: Forward, checkpoint: Checkpoint) -> None:
        """Take jobs one step further; those that cannot begin end here."""
        jobs = self._jobs.present(forward.orders)
        for job in jobs:
            with self._jobs.blame([job]):
                relieved(self._models, partial(self._open, job, checkpoint))
        slots = [job.slot for job in jobs if job.slot]
        if len(slots) < len(jobs):
            return
        try:
            # A recording or a compiled block may come at any time, and rounds differently.
            strict = any(job.spec.strict for job in jobs)
            with (
                checkpoint.lifted(forward.lift, plainly=strict),
                self._limits.measuring(checkpoint, forward),
            ):
                stepped = self._runner.step(
                    checkpoint, slots, bucket=forward.bucket, blocks=forward.blocks
                )
        except Exception as error:
            self._recover(error, forward, checkpoint)
            return
        for job, slot in zip(jobs, slots, strict=True):
            with self._jobs.blame([job]):
                relieved(self._models, slot.settle)
        self.book()
        self._running = (stepped, jobs, checkpoint)
        if any(slot.finished for slot in slots):
            self.book()

    def book(self) -> None:
        """Wait for the step under way; charge its jobs, and send on what it finished or broke."""
        if self._running is None:
            return
        (stepped, jobs, checkpoint), self._running = self._running, None
        with self._jobs.blame(jobs):
            rows, seconds = stepped.rows, stepped.seconds()
            if not jobs[0].lift:
                self._limits.timed(
                    checkpoint,
                    stepped.slots[0].request,
                    rows=rows.bucket,
                    seconds=seconds / rows.forwards,
                )
            shares = [seconds * taken / rows.count for taken in rows.taken]
            self._pulse.worked(
                "denoise",
                self._split(jobs, shares),
                checkpoint.name,
                forwards=rows.forwards,
                rows=rows.count,
                padded=rows.padding,
            )
            slots = stepped.slots
            for job, slot, share, position, good, estimate in zip(
                jobs,
                slots,
                shares,
                stepped.positions,
                stepped.finite(),
                stepped.estimates,
                strict=True,
            ):
                # Who shares it may have gone on with it meanwhile.
                holder = job if job in self._jobs and job.slot is slot else self._jobs.holder(slot)
                if holder:
                    holder.ledger.call(
                        self._charge(holder, share, bucket=rows.bucket),
                        rows=rows.count,
                        forwards=rows.forwards,
                        bucket=rows.bucket,
                        whole=slot.program.steps[position].whole,
                    )
                    if good:
                        done = slot.program.done[position]
                        self._reports.tell(holder, done, checkpoint, estimate)
                        self._send_on(holder, checkpoint, position)
                    else:
                        self._rescues.rescue(holder, checkpoint, position)

    def settle(self) -> None:
        """:meth:`book`, outside of a forward."""
        if self._running:
            with self._pulse.doing("denoise"):
                self.book()

    def rest(self) -> None:
        """Let go of everything while there is nothing to do."""
        self.settle()
        self._runner.forget()

    def _split(self, jobs: Sequence[Job], shares: Sequence[float]) -> dict[str, float]:
        """Seconds by the key of each job that they were for."""
        split: dict[str, float] = {}
        for job, share in zip(jobs, shares, strict=True):
            together = self._jobs.together(job)
            split |= {each.key: share / len(together) for each in together}
        return split

    def _charge(self, job: Job, seconds: float, *, bucket: int) -> float:
        """Charge those that get what a job gets with their part; what is left is its own."""
        together = self._jobs.together(job)
        share = seconds / len(together)
        for other in together:
            if other is not job:
                other.ledger.ride(share, bucket=bucket)
        return share

    def _open(self, job: Job, checkpoint: Checkpoint) -> None:
        if job.slot:
            return
        request = job.request
        assert isinstance(request, Denoise)
        later = [each for each in job.coming if each.checkpoint == request.checkpoint]
        self._limits.check(checkpoint, request)
        for each in later:
            encodes = job.spec.hires_upscaler in PICTURE_UPSCALERS
            self._limits.check(checkpoint, each, encodes=encodes)
        if request.edit and not checkpoint.edits:
            raise InvalidInput(
                f"{request.checkpoint!r} is no model for editing, and cannot be shown a picture.",
                field="checkpoint",
                value=request.checkpoint,
                remedy="Use one that takes 8 channels in, such as InstructPix2Pix.",
            )
        if not self._rescues.prepared(job, checkpoint):
            return
        program = compile_program(
            request.sampler,
            request.steps,
            checkpoint.alphas_cumprod,
            options=request.sampling,
            family=checkpoint.family,
            skipped=request.skipped,
        )
        kind = AdaptiveSlot if program.pilot else Slot
        job.open(kind(request, program, self._device))

    def _send_on(self, job: Job, checkpoint: Checkpoint, position: int) -> None:
        assert job.slot
        if position + 1 == len(job.slot.program.steps):
            self._rescues.done(job, checkpoint)
            with self._jobs.blame([job]):
                self._jobs.send(job, relieved(self._models, job.close))

    def _recover(self, error: Exception, forward: Forward, checkpoint: Checkpoint) -> None:
        """After a forward that failed before any slot moved: smaller, or beside fewer
        checkpoints, or else one by one."""
        if device_lost(error):
            raise DeviceLost(str(error)) from error
        traceback.clear_frames(error.__traceback__)
        self.book()
        self._runner.forget()
        jobs = self._jobs.present(forward.orders)
        log.warning("a forward of %d jobs failed: %r", len(jobs), error)
        if out_of_memory(error) and self._made_room(error, forward):
            return
        if len(jobs) == 1:
            self._jobs.fail(jobs, error)
            return
        for job in jobs:
            with self._pulse.doing("denoise"):
                self.forward(replace(forward, orders=(job.order,)), checkpoint)

    def _made_room(self, error: Exception, forward: Forward) -> bool:
        """Whether a forward that ran out of memory may be tried again: nothing is decoded beside
        it from now on, or it has fewer rows, or something left."""
        if isinstance(error, HostExhausted):  # fewer rows would take no less of the host's memory
            return made_room(self._models, error)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        shape = (forward.checkpoint, forward.width, forward.height)
        if (
            self._decodes.give_way()
            or self._limits.halve(*shape, rows=forward.bucket)
            or made_room(self._models, error)
        ):
            return True
        # In a precision of its own an image takes more than others of its size.
        if not forward.lift:
            self._limits.give_up(*shape)
        return False

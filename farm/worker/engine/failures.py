"""What an exception on the device means for the jobs it happened to."""

from __future__ import annotations

import traceback

import torch

from farm.errors import DoesNotFit, FarmError, NumericFailure, Unavailable
from farm.worker.engine.job import Job
from farm.worker.memory.exhaustion import HostExhausted, out_of_memory


class DeviceLost(BaseException):
    """The device is of no more use to this process: a fault of the GPU, or in one of its kernels.

    CUDA then answers every further call with the same error. Not an ``Exception``, so that nobody
    on its way out takes it for the misfortune of one job.
    """


def device_lost(error: BaseException) -> bool:
    """Whether every further call on the device would fail too."""
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)


def explained(error: Exception, job: Job) -> Exception:
    """The error that the job's owner is told; running out of memory is put in their words."""
    # A traceback keeps the locals of its frames, and with them tensors, as long as it lives.
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, FarmError) or not out_of_memory(error):
        return error
    if isinstance(error, HostExhausted):
        lacking = Unavailable(
            f"The worker's machine had {error}.",
            remedy="Give it more memory, or have less run beside the worker.",
        )
        lacking.__cause__ = error
        return lacking
    waiting = job.waiting
    size = f"{waiting.width}x{waiting.height}"
    refusal = DoesNotFit(
        f"The device ran out of memory at {size} on {waiting.checkpoint!r}.",
        field="width",
        value=size,
        remedy="Make the image smaller, or use a device with more memory.",
    )
    refusal.__cause__ = error
    return refusal


def not_finite(job: Job, step: int) -> NumericFailure:
    """The latent of this job stopped being numbers at ``step``, counted from 1."""
    checkpoint = job.waiting.checkpoint
    where = f", and did so in every precision up to {job.ledger.precision}" if job.lift else ""
    return NumericFailure(
        f"The latent became NaN or infinite at step {job.before + step} of {job.steps} "
        f"on {checkpoint!r}{where}.",
        field="checkpoint",
        value=checkpoint,
        remedy="Lower cfg_scale, or use another checkpoint.",
    )

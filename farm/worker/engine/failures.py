"""What an exception on the device means for the jobs it happened to."""

from __future__ import annotations

import traceback

import torch

from farm.errors import DoesNotFit, FarmError, NumericFailure
from farm.worker.engine.job import Job


class DeviceLost(BaseException):
    """The device is of no more use to this process: a fault of the GPU, or in one of its kernels.

    CUDA then answers every further call with the same error. Not an ``Exception``, so that nobody
    on its way out takes it for the misfortune of one job.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no memory left.

    On a CPU torch raises a plain RuntimeError that only its text tells apart, and so it is with
    libraries that take memory from CUDA past torch.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, torch.AcceleratorError):
        return "out of memory" in str(error)
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def device_lost(error: BaseException) -> bool:
    """Whether every further call on the device would fail too."""
    return isinstance(error, torch.AcceleratorError) and not out_of_memory(error)


def explained(error: Exception, job: Job) -> Exception:
    """The error that the job's owner is told; running out of memory is put in their words."""
    # A traceback keeps the locals of its frames, and with them tensors, as long as it lives.
    traceback.clear_frames(error.__traceback__)
    if isinstance(error, FarmError) or not out_of_memory(error):
        return error
    size = f"{job.spec.width}x{job.spec.height}"
    refusal = DoesNotFit(
        f"The device ran out of memory at {size} on {job.spec.checkpoint!r}.",
        field="width",
        value=size,
        remedy="Make the image smaller, or use a device with more memory.",
    )
    refusal.__cause__ = error
    return refusal


def not_finite(job: Job, step: int) -> NumericFailure:
    """The latent of this job stopped being numbers at ``step``, counted from 1."""
    return NumericFailure(
        f"The latent became NaN or infinite at step {step} of {job.steps} "
        f"on {job.spec.checkpoint!r}.",
        field="checkpoint",
        value=job.spec.checkpoint,
        remedy="Run the checkpoint in a higher precision, or lower cfg_scale.",
    )

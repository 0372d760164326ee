"""How matrix products add up, for the whole process."""

from __future__ import annotations

import torch

from farm.worker.memory.profiles import MemoryProfile


def obey(profile: MemoryProfile, device: torch.device) -> None:
    """Have float16 products add up as the profile says. Convolutions and attention do as before.

    A latent that overflows for it is saved as any other: bfloat16 knows no such thing.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_fp16_accumulation = profile.fp16_accumulation

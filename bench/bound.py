"""What jobs take at the least: their calls of the models in full batches, and nothing else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from farm.spec.job import JobSpec
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.decoder import FACTOR
from farm.worker.models.text import AT_ONCE, TextEncoding, Words


class Bound:
    """Calls the models that the engine has, as often and in the precision that jobs need: no noise,
    no samplers, no guidance, no pictures made of what comes out. Who computes the same by the same
    kernels cannot be quicker.

    All texts go through their encoders together, as do all latents of a size through the decoder,
    which takes more memory than the engine plans with.
    """

    def __init__(self, models: ModelCache, profile: MemoryProfile) -> None:
        self._models = models
        self._most = profile.max_rows

    def render(self, specs: Sequence[JobSpec]) -> None:
        """What these jobs take; their samplers must call the model once a step."""
        checkpoint = self._models.get(specs[0].checkpoint)
        with torch.inference_mode():
            asked = [Words((spec.prompt,)) for spec in specs]
            asked += {Words((s.negative_prompt,), negative=True) for s in specs if _guided(s)}
            for first in range(0, len(asked), AT_ONCE):
                text = checkpoint.encode_together(asked[first : first + AT_ONCE])[0]
            for number in range(max(len(spec.passes) for spec in specs)):
                self._denoise(checkpoint, text, specs, number)
            self._decode(checkpoint, specs)

    def _denoise(
        self, checkpoint: Checkpoint, text: TextEncoding, specs: Sequence[JobSpec], number: int
    ) -> None:
        """A pass of all jobs; those of a size go together until they are done."""
        sizes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for own in (spec.passes[number] for spec in specs if number < len(spec.passes)):
            sizes[own.width, own.height].append((own.steps, 1 + own.guided))
        for (width, height), jobs in sizes.items():
            for step in range(max(steps for steps, _ in jobs)):
                left = sum(rows for steps, rows in jobs if step < steps)
                while left > 0:
                    rows = min(left, self._most)
                    x = torch.randn(rows, 4, height // FACTOR, width // FACTOR)
                    _predict(checkpoint, text, x.to(checkpoint.device))
                    left -= rows

    def _decode(self, checkpoint: Checkpoint, specs: Sequence[JobSpec]) -> None:
        sizes: dict[tuple[int, int], int] = defaultdict(int)
        for spec in specs:
            sizes[spec.size] += 1
        vae = checkpoint._decoder._vae
        for (width, height), count in sizes.items():
            latents = torch.randn(count, 4, height // FACTOR, width // FACTOR)
            vae.decode(latents.to(vae.device, vae.dtype), return_dict=False)


def _guided(spec: JobSpec) -> bool:
    return spec.passes[0].guided


def _predict(checkpoint: Checkpoint, text: TextEncoding, x: torch.Tensor) -> None:
    rows = len(x)
    checkpoint.predict(
        x,
        torch.full((rows,), 500.0, device=x.device),
        text.tokens[:1].expand(rows, -1, -1),
        pooled=None if text.pooled is None else text.pooled[:1].expand(rows, -1),
        size_ids=None if text.pooled is None else torch.zeros(rows, 6, device=x.device),
    )

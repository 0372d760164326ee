"""Who makes the images: the engine, and diffusers' own pipelines."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import full_size
from farm.spec.job import JobSpec
from farm.worker.engine import Engine, Rendered
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import AssetFile

SCHEDULERS = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
}


class Farm:
    """The engine with one checkpoint resident."""

    def __init__(
        self, files: Sequence[AssetFile], profile: MemoryProfile, device: torch.device
    ) -> None:
        self.device = device
        self.models = ModelCache(files, profile, device)
        self.engine = Engine(self.models, profile, device)
        self.engine.start()
        self._number = 0

    def render(self, specs: Sequence[JobSpec]) -> list[Rendered]:
        """Make the images."""
        return [future.result() for future in [self.submit(spec) for spec in specs]]

    def submit(self, spec: JobSpec) -> Any:
        """With a seed and words of its own each time, as texts and first passes are kept."""
        self._number += 1
        own = {"seed": self._number, "prompt": f"{spec.prompt} {self._number}"}
        return self.engine.submit(str(self._number), spec.model_copy(update=own))


class Pipeline:
    """diffusers' pipeline for one file."""

    def __init__(self, file: AssetFile, device: torch.device, dtype: torch.dtype) -> None:
        from tests.checkpoints import diffusers_pipeline

        if file.path.with_suffix(".config").is_dir():
            self.pipe = diffusers_pipeline(file.path, dtype)
        else:
            self.pipe = _from_single_file(file, dtype)
        self.pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self._schedule = self.pipe.scheduler.config

    def loop(self, specs: Sequence[JobSpec]) -> None:
        for spec in specs:
            self._call(spec, [spec])

    def batch(self, specs: Sequence[JobSpec]) -> None:
        self._call(specs[0], specs)

    def _call(self, first: JobSpec, specs: Sequence[JobSpec]) -> None:
        import diffusers

        kind, options = SCHEDULERS[first.sampler]
        self.pipe.scheduler = getattr(diffusers, kind).from_config(self._schedule, **options)
        generators = [torch.Generator().manual_seed(spec.seed) for spec in specs]
        asked: dict[str, Any] = {
            "prompt": [spec.prompt for spec in specs],
            "negative_prompt": [spec.negative_prompt for spec in specs],
            "guidance_scale": first.cfg_scale,
            "generator": generators,
        }
        with torch.no_grad():
            made = self.pipe(
                num_inference_steps=first.steps,
                width=first.width,
                height=first.height,
                output_type="latent" if first.target else "np",
                **asked,
            ).images
            if first.target:
                self._enlarged(first, made, asked)

    def _enlarged(self, first: JobSpec, small: torch.Tensor, asked: dict[str, Any]) -> None:
        from diffusers import AutoPipelineForImage2Image

        strength, second = first.denoising_strength, first.passes[1]
        again = AutoPipelineForImage2Image.from_pipe(self.pipe)
        again.set_progress_bar_config(disable=True)
        size = (second.height // 8, second.width // 8)
        again(
            image=torch.nn.functional.interpolate(small, size, mode="bilinear"),
            strength=strength,
            num_inference_steps=round(second.steps / strength),
            output_type="np",
            **asked,
        )


def _from_single_file(file: AssetFile, dtype: torch.dtype) -> Any:
    import diffusers

    from farm.worker.models.tokenizer import clip_tokenizer

    xl = file.family == "sdxl"
    kind = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    extras: dict[str, Any] = {"tokenizer": clip_tokenizer("eos")}
    extras |= (
        {"tokenizer_2": clip_tokenizer("zero")}
        if xl
        else {"safety_checker": None, "feature_extractor": None}
    )
    with tempfile.TemporaryDirectory() as scratch:
        return getattr(diffusers, kind).from_single_file(
            str(file.path),
            config=str(full_size.pipeline_folder(str(file.family), Path(scratch) / "configs")),
            torch_dtype=dtype,
            local_files_only=True,
            **extras,
        )

"""Checkpoint files into memory, with no network and no pickle.

Two stages: :func:`prepare` reads the index, builds the models without memory and checks every
name and shape, so that a bad file is known before anything resident is given up for it;
:meth:`Prepared.load` then reads the weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from farm.errors import CheckpointError
from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models.architecture import (
    Architecture,
    read_config,
    recognise,
    recognise_folder,
)
from farm.worker.models.betas import alphas_cumprod
from farm.worker.models.catalogue import AssetFile, config_folder
from farm.worker.models.checkpoint import Checkpoint
from farm.worker.models.header import Header, damaged, read_header
from farm.worker.models.parts import Part, build_on_meta, parts_of
from farm.worker.models.plan import PartPlan
from farm.worker.models.reader import check_unchanged

PREDICTIONS = ("epsilon", "v_prediction")


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that was checked and can be loaded.

    Attributes:
        seconds: what the checks took.
    """

    file: AssetFile
    architecture: Architecture
    prediction: str
    alphas_cumprod: list[float]
    plans: tuple[PartPlan, ...]
    profile: MemoryProfile
    device: torch.device
    seconds: float

    @property
    def bytes(self) -> int:
        """Memory it will take on the device."""
        return sum(plan.bytes for plan in self.plans if plan.device == self.device)

    def load(self) -> Checkpoint:
        """Read the weights onto the device; raises as :func:`load` does."""
        started = time.perf_counter()
        with torch.inference_mode(mode=False):
            modules = {plan.part.name: plan.load() for plan in self.plans}
        for plan in self.plans:
            check_unchanged(plan.header)
        return Checkpoint(
            self.file.name,
            modules,
            family=self.architecture.family,
            prediction=self.prediction,
            alphas_cumprod=self.alphas_cumprod,
            profile=self.profile,
            device=self.device,
            size=self.bytes,
            load_seconds=self.seconds + time.perf_counter() - started,
        )


def load(file: AssetFile, profile: MemoryProfile, device: torch.device) -> Checkpoint:
    """Read ``file`` onto ``device`` in the profile's precision.

    Raises:
        CheckpointError: the file is damaged, incomplete, of an unsupported kind, or changed
            while it was read.
    """
    return prepare(file, profile, device).load()


def prepare(file: AssetFile, profile: MemoryProfile, device: torch.device) -> Prepared:
    """Check ``file`` from its index and configs alone; raises :class:`CheckpointError`."""
    started = time.perf_counter()
    if file.error is not None:
        raise CheckpointError(file.error, field="checkpoint", value=file.name)
    if file.path.is_dir():
        single, architecture, configs = None, recognise_folder(file.path), file.path
    else:
        single = read_header(file.path)
        architecture = recognise(single)
        configs = config_folder(file.path, architecture.family)
    scheduler = read_config(configs / "scheduler" / "scheduler_config.json")
    plans = tuple(
        _plan(part, configs, single, _placement(part, profile, device))
        for part in parts_of(architecture.family)
    )
    for plan in plans:
        plan.check()
    return Prepared(
        file=file,
        architecture=architecture,
        prediction=_prediction(architecture, scheduler),
        alphas_cumprod=alphas_cumprod(scheduler),
        plans=plans,
        profile=profile,
        device=device,
        seconds=time.perf_counter() - started,
    )


def _prediction(architecture: Architecture, scheduler: Mapping[str, Any]) -> str:
    said = architecture.prediction or scheduler.get("prediction_type", "epsilon")
    if said not in PREDICTIONS:
        raise CheckpointError(
            f"The scheduler config says that the model predicts {said!r}.",
            field="checkpoint",
            value=said,
            remedy=f"This version knows {' and '.join(PREDICTIONS)}.",
        )
    return str(said)


def _placement(
    part: Part, profile: MemoryProfile, device: torch.device
) -> tuple[torch.dtype, torch.device]:
    """Where the part's weights live; offloaded text encoders wait in host memory."""
    own = profile.vae_dtype if part.name == "vae" and profile.vae_dtype != "auto" else profile.dtype
    offloaded = profile.offload == "model" and part.name.startswith("text_encoder")
    return getattr(torch, own), torch.device("cpu") if offloaded else device


def _plan(
    part: Part,
    configs: Path,
    single: Header | None,
    placement: tuple[torch.dtype, torch.device],
) -> PartPlan:
    dtype, device = placement
    header = single or read_header(_weights_file(configs / part.name, part.weights, dtype))
    prefix = part.prefix if single else ""
    return PartPlan(
        part=part,
        module=build_on_meta(part, configs),
        header=header,
        names=tuple(name for name in header.tensors if name.startswith(prefix)),
        folder_names=single is None,
        dtype=dtype,
        device=device,
    )


def _weights_file(folder: Path, stem: str, dtype: torch.dtype) -> Path:
    """The weights in a diffusers folder; of two variants the one nearer to ``dtype``."""
    full, half = folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"
    wanted = [full, half] if dtype == torch.float32 else [half, full]
    for path in wanted:
        if path.is_file():
            return path
    raise damaged(
        folder,
        f"lacks {full.name}",
        "Farm reads safetensors in one file a model: no pickles, no shards.",
    )

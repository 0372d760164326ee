"""The files and configs that a checkpoint is put together from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from farm.worker.models.architecture import (
    Architecture,
    read_config,
    recognise,
    recognise_folder,
)
from farm.worker.models.catalogue import BUNDLES, config_folder
from farm.worker.models.depth import depth_config
from farm.worker.models.header import Header, read_header
from farm.worker.models.parts import Part, build_on_meta
from farm.worker.models.plan import PartPlan, Source
from farm.worker.models.shards import folder_sources
from farm.worker.models.vae import has_new_names, lacks_vae, vae_names


@dataclass(frozen=True)
class Origin:
    """Where the parts of one checkpoint come from.

    Attributes:
        configs: folder of the parts' configs.
        single: index of the single file; None for a diffusers folder.
        vae: index of a VAE file that goes before the checkpoint's own.
    """

    architecture: Architecture
    configs: Path
    single: Header | None
    vae: Header | None

    def plan(self, part: Part, dtype: torch.dtype, device: torch.device) -> PartPlan:
        """How to load one part; raises :class:`CheckpointError` where something is missing."""
        sources, folder_names = self._sources(part, dtype)
        changes = self._unet_changes() if part.name == "unet" else {}
        return PartPlan(
            part=part,
            module=build_on_meta(part, self.configs, changes),
            sources=sources,
            folder_names=folder_names,
            remedy=self._remedy(part),
            dtype=dtype,
            device=device,
        )

    def _sources(self, part: Part, dtype: torch.dtype) -> tuple[tuple[Source, ...], bool]:
        """The files of a part, and whether they go by diffusers' names."""
        if part.name == "vae" and self.vae:
            return (Source(self.vae, vae_names(self.vae)),), has_new_names(self.vae)
        if self.single is None:
            return folder_sources(self.configs / part.name, part.weights, dtype), True
        names = tuple(name for name in self.single.tensors if name.startswith(part.prefix))
        return (Source(self.single, names),), False

    def _remedy(self, part: Part) -> str:
        if part.name == "vae" and self.vae:
            return f"Give a VAE made for {self.architecture.family}."
        own = "config.json"
        if self.single:
            own = f"configs in {self.single.path.stem}.config/"
        return f"Get it whole; a model of its own shape needs its own {own}."

    def _unet_changes(self) -> dict[str, Any]:
        """What a UNet's config must say. Of one that ships with Farm the file itself knows some
        things better; and SD2's scores do not fit in float16, which not every config says."""
        changes: dict[str, Any] = {}
        if self.architecture.family == "sd2":
            changes["upcast_attention"] = True
        if self.single is None or self.configs.parent != BUNDLES:
            return changes
        changes["in_channels"] = self.architecture.in_channels
        if self.architecture.family == "ssd1b":
            config = read_config(self.configs / "unet" / "config.json")
            changes |= depth_config(self.single, config)
        return changes


def origin_of(path: Path, vae: Path | None) -> Origin:
    """Look at a checkpoint's index and configs.

    Args:
        path: the single file or the diffusers folder.
        vae: a VAE file to use instead of its own.

    Raises:
        CheckpointError: it is damaged, of an unsupported kind, or there is no VAE.
    """
    if path.is_dir():
        single, architecture, configs = None, recognise_folder(path), path
    else:
        single = read_header(path)
        architecture = recognise(single)
        configs = config_folder(path, architecture.family)
    if vae is None and not architecture.has_vae:
        raise lacks_vae(path)
    return Origin(architecture, configs, single, read_header(vae) if vae else None)

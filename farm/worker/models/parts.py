"""The models inside a checkpoint, and the names their weights go by on disk.

A single file uses the names of the original training code; diffusers knows how to translate
them (``diffusers.loaders.single_file_utils``). A diffusers folder has one file a model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.initialization import no_init_weights

from farm.worker.models import open_clip
from farm.worker.models.architecture import UNET, VAE, read_config
from farm.worker.models.header import damaged

Weights = dict[str, Tensor]

SD_TEXT = "cond_stage_model.transformer."
SD2_TEXT = "cond_stage_model.model."
XL_TEXT = "conditioner.embedders.0.transformer."
XL_TEXT_2 = "conditioner.embedders.1.model."
REFINER_TEXT = "conditioner.embedders.0.model."

# What the attention of a VAE was called in diffusers before 0.12; SD1.5 folders still have it.
OLD_ATTENTION = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


@dataclass(frozen=True)
class Part:
    """One model of a checkpoint.

    Attributes:
        name: as diffusers names its folder: ``unet``, ``vae``, ``text_encoder``, and for
            SDXL's bigG ``text_encoder_2``.
        prefix: what its weights' names begin with in a single file.
        weights: stem of its file in a diffusers folder.
        build: config to module.
        translate: (single file weights, module) to the module's own names.
    """

    name: str
    prefix: str
    weights: str
    build: Callable[[Mapping[str, Any]], nn.Module]
    translate: Callable[[Weights, Any], Weights]


def parts_of(family: str) -> tuple[Part, ...]:
    """The models that a checkpoint of ``family`` is made of."""
    return _PARTS[family]


def build_on_meta(part: Part, folder: Path, changes: Mapping[str, Any] | None = None) -> nn.Module:
    """The module of ``part`` by its config in ``folder``: shapes without memory.

    Args:
        changes: what the config must say instead.

    Raises:
        CheckpointError: the config is missing or describes no such model.
    """
    path = folder / part.name / "config.json"
    config = {**read_config(path), **(changes or {})}
    try:
        # transformers swaps torch.nn.init's functions, for the whole process, while it builds.
        # Weights without memory need no start, which would take a third of the time.
        with _BUILDING, no_init_weights(), torch.device("meta"):
            return part.build(config).eval().requires_grad_(False)
    except Exception as error:  # whatever a library makes of a strange config
        raise damaged(path, f"does not describe a {part.name}: {error}") from error


def from_folder(weights: Weights, module: nn.Module) -> Weights:
    """Names in a diffusers folder's file to the module's own names."""
    if isinstance(module, AutoencoderKL):
        return {_new_attention(name): weight for name, weight in weights.items()}
    if isinstance(module, UNet2DConditionModel):
        return weights
    return _clip_names(weights, module)


def _unet(weights: Weights, module: Any) -> Weights:
    return _call(single_file_utils.convert_ldm_unet_checkpoint, weights, module.config)


def _vae(weights: Weights, module: Any) -> Weights:
    return _call(single_file_utils.convert_ldm_vae_checkpoint, weights, module.config)


def _clip(weights: Weights, module: Any) -> Weights:
    return _clip_names(_call(single_file_utils.convert_ldm_clip_checkpoint, weights), module)


def _open_clip(prefix: str) -> Callable[[Weights, Any], Weights]:
    def translate(weights: Weights, module: Any) -> Weights:
        found = _clip_names(open_clip.translated(weights, prefix), module)
        # SD2 files bring a last layer and a projection that their text encoder does without.
        return {name: found[name] for name in module.state_dict() if name in found}

    return translate


def _call(convert: Callable[..., Any], *args: Any, **options: Any) -> Weights:
    weights: Weights = convert(*args, **options)
    return weights


def _clip_names(weights: Weights, module: nn.Module) -> Weights:
    """transformers 5.6 took away the ``text_model.`` around CLIPTextModel's own weights."""
    if hasattr(module, "text_model"):
        return weights
    return {name.removeprefix("text_model."): weight for name, weight in weights.items()}


def _new_attention(name: str) -> str:
    for old, new in OLD_ATTENTION.items():
        name = name.replace(old, new)
    return name


def _build_unet(config: Mapping[str, Any]) -> nn.Module:
    module: nn.Module = UNet2DConditionModel.from_config(dict(config))
    return module


def _build_vae(config: Mapping[str, Any]) -> nn.Module:
    module: nn.Module = AutoencoderKL.from_config(dict(config))
    return module


def _build_text(config: Mapping[str, Any]) -> nn.Module:
    module: nn.Module = CLIPTextModel(CLIPTextConfig(**config))
    return module


def _build_text_2(config: Mapping[str, Any]) -> nn.Module:
    module: nn.Module = CLIPTextModelWithProjection(CLIPTextConfig(**config))
    return module


def _bigg(prefix: str) -> Part:
    return Part("text_encoder_2", prefix, "model", _build_text_2, _open_clip(prefix))


_BUILDING = threading.Lock()
_UNET = Part("unet", UNET, "diffusion_pytorch_model", _build_unet, _unet)
_VAE = Part("vae", VAE, "diffusion_pytorch_model", _build_vae, _vae)
_SDXL = (
    _UNET,
    _VAE,
    Part("text_encoder", XL_TEXT, "model", _build_text, _clip),
    _bigg(XL_TEXT_2),
)
_PARTS = {
    "sd15": (_UNET, _VAE, Part("text_encoder", SD_TEXT, "model", _build_text, _clip)),
    "sd2": (
        _UNET,
        _VAE,
        Part("text_encoder", SD2_TEXT, "model", _build_text, _open_clip(SD2_TEXT)),
    ),
    "sdxl": _SDXL,
    "ssd1b": _SDXL,
    "sdxl-refiner": (_UNET, _VAE, _bigg(REFINER_TEXT)),
}

"""Tiny random checkpoints in the layouts people have, and diffusers' own pipelines for them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from farm.worker.models.catalogue import AssetFile, scan
from farm.worker.models.tokenizer import clip_tokenizer
from tests import original_layout

NO_CHECKER = {"safety_checker": None, "feature_extractor": None}
LAYERS_PER_BLOCK = 1
TEXT_WIDTHS = (16, 32)

UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": LAYERS_PER_BLOCK,
    "norm_num_groups": 8,
}
NARROW, WIDE = TEXT_WIDTHS
UNET_SD15 = {
    **UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": NARROW,
    "attention_head_dim": 2,
}
UNET_SDXL = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": NARROW + WIDE,
    "attention_head_dim": (1, 2, 2),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + WIDE,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": UNET_SD15,
    "sd2": {
        **UNET_SD15,
        "cross_attention_dim": WIDE,
        "attention_head_dim": (1, 2, 2),
        "use_linear_projection": True,
    },
    "sdxl": UNET_SDXL,
    "ssd1b": {
        **UNET_SDXL,
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [1], [2]],
        "reverse_transformer_layers_per_block": [[2, 3], [2, 1], 1],
    },
    "sdxl-refiner": {
        **UNET_SDXL,
        "cross_attention_dim": WIDE,
        "transformer_layers_per_block": 1,
        "projection_class_embeddings_input_dim": 5 * 8 + WIDE,
    },
}
VAE = {
    "sample_size": 64,
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": LAYERS_PER_BLOCK,
    "norm_num_groups": 4,
}
SD1_TEXT = "cond_stage_model.transformer."
SD2_TEXT = "cond_stage_model.model."
XL_TEXT = "conditioner.embedders.0.transformer."
XL_TEXT_2 = "conditioner.embedders.1.model."
REFINER_TEXT = "conditioner.embedders.0.model."
TEXT_PREFIXES = {
    "sd15": {"text_encoder": SD1_TEXT},
    "sd2": {"text_encoder": SD2_TEXT},
    "sdxl": {"text_encoder": XL_TEXT, "text_encoder_2": XL_TEXT_2},
    "ssd1b": {"text_encoder": XL_TEXT, "text_encoder_2": XL_TEXT_2},
    "sdxl-refiner": {"text_encoder_2": REFINER_TEXT},
}
FAMILIES = tuple(UNETS)


def make_tiny(
    folder: Path,
    family: str,
    *,
    layout: str = "single",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    prediction: str = "epsilon",
    channels: int = 4,
    with_vae: bool = True,
    extras: Mapping[str, torch.Tensor] | None = None,
    metadata: dict[str, str] | None = None,
    name: str | None = None,
) -> Path:
    """Write a small random checkpoint.

    Args:
        folder: an existing folder to write into.
        family: one of :data:`FAMILIES`.
        layout: ``single``, a file in the original layout with ``<stem>.config/`` beside it,
            ``diffusers``, a folder as diffusers saves it, or ``sharded``, the same in pieces.
        seed: same seed, same weights.
        dtype: what the weights are stored in.
        variant: of a diffusers folder: ``fp16`` puts that into the file names.
        prediction: ``epsilon`` or ``v_prediction``, written into the scheduler's config.
        channels: that the UNet takes in: 8 for a model for editing, 9 for inpainting.
        with_vae: whether a single file has its VAE in it.
        extras: more tensors of a single file.
        metadata: of a single file.
        name: of the file or folder, ``tiny-<family>`` by default.

    Returns:
        The file ``<name>.safetensors`` or the folder ``<name>``.
    """
    parts = _random_parts(family, seed, prediction, channels)
    for module in parts.values():
        if isinstance(module, torch.nn.Module):
            torch.nn.Module.to(module, dtype)
    path = folder / (name or f"tiny-{family}")
    if layout != "single":
        size = "150KB" if layout == "sharded" else "10GB"
        _assemble(family, parts).save_pretrained(path, variant=variant, max_shard_size=size)
        return path
    configs = folder / f"{path.name}.config"
    for part_name, part in parts.items():
        if hasattr(part, "save_config"):
            part.save_config(configs / part_name)
        else:
            part.config.save_pretrained(configs / part_name)
    (configs / "model_index.json").write_text(json.dumps(_model_index(family, parts)))
    weights = _original(family, parts) | dict(extras or {})
    if not with_vae:
        weights = {key: value for key, value in weights.items() if "first_stage" not in key}
    file = folder / f"{path.name}.safetensors"
    save_file(weights, file, metadata)
    return file


def make_vae(path: Path, naming: str, *, seed: int = 1) -> Path:
    """Write a small random VAE file.

    Args:
        naming: ``prefixed``, as in a checkpoint, ``bare``, the same without its prefix, or
            ``diffusers``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = AutoencoderKL(**VAE).state_dict()
    if naming != "diffusers":
        weights = original_layout.vae(weights)
    if naming == "bare":
        weights = {key.removeprefix("first_stage_model."): value for key, value in weights.items()}
    save_file({key: value.contiguous() for key, value in weights.items()}, path)
    return path


def tiny_file(folder: Path, family: str, **options: Any) -> AssetFile:
    """:func:`make_tiny`, as the catalogue lists it."""
    path = make_tiny(folder, family, **options)
    return next(file for file in scan([folder]) if file.path == path)


def diffusers_pipeline(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """diffusers' own pipeline for a checkpoint of :func:`make_tiny` or the demo, offline."""
    if path.is_dir():
        kind = json.loads((path / "model_index.json").read_text())["_class_name"]
        half = any(path.glob("unet/*.fp16.*"))
        pipeline = getattr(diffusers, kind).from_pretrained(
            path, dtype=dtype, local_files_only=True, variant="fp16" if half else None
        )
    else:
        with tempfile.TemporaryDirectory() as scratch:
            configs = shutil.copytree(path.with_suffix(".config"), Path(scratch) / "configs")
            index = configs / "model_index.json"
            if not index.exists():  # the demo
                index.write_text(json.dumps(_model_index("sdxl", {})))
            facts = json.loads(index.read_text())
            pipeline = getattr(diffusers, facts["_class_name"]).from_single_file(
                str(path),
                config=str(configs),
                torch_dtype=dtype,
                local_files_only=True,
                **_extras(facts["_family"]),
            )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _random_parts(family: str, seed: int, prediction: str, channels: int) -> dict[str, Any]:
    xl = family not in ("sd15", "sd2")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "unet": UNet2DConditionModel(**UNETS[family], in_channels=channels),
            "vae": AutoencoderKL(**VAE, scaling_factor=0.13025 if xl else 0.18215),
            **{name: _text_encoder(family, name) for name in TEXT_PREFIXES[family]},
            "scheduler": EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                prediction_type=prediction,
            ),
        }


def _text_encoder(family: str, name: str) -> torch.nn.Module:
    if name == "text_encoder_2":
        # With fewer than ten layers diffusers would take the file for an SD1.5 one.
        return CLIPTextModelWithProjection(_clip(WIDE, 11, hidden_act="gelu", pad_token_id=0))
    if family == "sd2":
        return CLIPTextModel(_clip(WIDE, 2, hidden_act="gelu", pad_token_id=0))
    return CLIPTextModel(_clip(NARROW, 2, hidden_act="quick_gelu"))


def _clip(width: int, layers: int, **options: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        **{"pad_token_id": 49407, "bos_token_id": 49406, "eos_token_id": 49407, **options},
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_attention_heads=2,
        num_hidden_layers=layers,
        vocab_size=49408,
        # The library's own start is so near zero that every prompt would look alike.
        initializer_range=0.3,
    )


def _class_name(family: str, parts: Mapping[str, Any]) -> str:
    if family == "sdxl-refiner":
        return "StableDiffusionXLImg2ImgPipeline"
    xl = "" if family in ("sd15", "sd2") else "XL"
    channels = parts["unet"].config.in_channels if "unet" in parts else 4
    purpose = {4: "", 8: "InstructPix2Pix", 9: "Inpaint"}[channels]
    return f"StableDiffusion{xl}{purpose}Pipeline"


def _assemble(family: str, parts: dict[str, Any]) -> Any:
    return getattr(diffusers, _class_name(family, parts))(**_extras(family), **parts)


def _extras(family: str) -> dict[str, Any]:
    """What a pipeline needs beside the parts."""
    if family in ("sd15", "sd2"):
        tokenizer = clip_tokenizer("eos" if family == "sd15" else "zero")
        return {"tokenizer": tokenizer, **NO_CHECKER, "requires_safety_checker": False}
    second = {"tokenizer_2": clip_tokenizer("zero")}
    if family == "sdxl-refiner":
        nothing = {"text_encoder": None, "tokenizer": None}
        return {**nothing, **second, "requires_aesthetics_score": True}
    return {"tokenizer": clip_tokenizer("eos"), **second}


def _model_index(family: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    index: dict[str, Any] = {
        "_class_name": _class_name(family, parts),
        "_family": family,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    }
    kinds = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
    for name in TEXT_PREFIXES[family]:
        index[name] = ["transformers", kinds[name]]
        index[name.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if family in ("sd15", "sd2"):
        return index | {name: [None, None] for name in NO_CHECKER}
    return index | {"force_zeros_for_empty_prompt": True}


def _original(family: str, parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    weights = original_layout.unet(parts["unet"].state_dict(), LAYERS_PER_BLOCK)
    weights |= original_layout.vae(parts["vae"].state_dict())
    for name, prefix in TEXT_PREFIXES[family].items():
        state = parts[name].state_dict()
        if prefix.endswith(".transformer."):
            weights |= original_layout.clip(state, prefix)
        else:
            weights |= original_layout.open_clip(state, prefix, cut=family == "sd2")
    return {name: weight.contiguous() for name, weight in weights.items()}

"""Tiny random checkpoints in the layouts people have, and diffusers' own pipelines for them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from farm.worker.models.catalogue import AssetFile, config_folder, scan
from farm.worker.models.tokenizer import clip_tokenizer
from tests import original_layout

PIPELINES = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
NO_CHECKER = {"safety_checker": None, "feature_extractor": None}
LAYERS_PER_BLOCK = 1
TEXT_WIDTHS = (16, 32)

UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32),
    "layers_per_block": LAYERS_PER_BLOCK,
    "norm_num_groups": 8,
}
UNET_SD15 = {
    **UNET,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": TEXT_WIDTHS[0],
    "attention_head_dim": 2,
}
UNET_SDXL = {
    **UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": sum(TEXT_WIDTHS),
    "attention_head_dim": (1, 2, 2),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + TEXT_WIDTHS[1],
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
SCALING = {"sd15": 0.18215, "sdxl": 0.13025}


def make_tiny(
    folder: Path,
    family: str,
    *,
    layout: str = "single",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    prediction: str = "epsilon",
) -> Path:
    """Write a small random checkpoint.

    Args:
        folder: an existing folder to write into.
        family: ``sd15`` or ``sdxl``.
        layout: ``single``, a file in the original layout with ``<stem>.config/`` beside it, or
            ``diffusers``, a folder as diffusers saves it.
        seed: same seed, same weights.
        dtype: what the weights are stored in.
        variant: of a diffusers folder: ``fp16`` puts that into the file names.
        prediction: ``epsilon`` or ``v_prediction``, written into the scheduler's config.

    Returns:
        The file ``tiny-<family>.safetensors`` or the folder ``tiny-<family>``.
    """
    parts = _random_parts(family, seed, prediction)
    for module in parts.values():
        if isinstance(module, torch.nn.Module):
            torch.nn.Module.to(module, dtype)
    path = folder / f"tiny-{family}"
    if layout == "diffusers":
        _assemble(family, parts).save_pretrained(path, variant=variant)
        return path
    for name, part in parts.items():
        if hasattr(part, "save_config"):
            part.save_config(folder / f"{path.name}.config" / name)
        else:
            part.config.save_pretrained(folder / f"{path.name}.config" / name)
    file = folder / f"{path.name}.safetensors"
    save_file(_original(family, parts), file)
    return file


def tiny_file(folder: Path, family: str, **options: Any) -> AssetFile:
    """:func:`make_tiny`, as the catalogue lists it."""
    path = make_tiny(folder, family, **options)
    return next(file for file in scan([folder]) if file.path == path)


def diffusers_pipeline(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """diffusers' own pipeline for a checkpoint of :func:`make_tiny` or the demo, offline."""
    if path.is_dir():
        family = "sdxl" if (path / "text_encoder_2").is_dir() else "sd15"
        half = any(path.glob("unet/*.fp16.safetensors"))
        pipeline = PIPELINES[family].from_pretrained(
            path, dtype=dtype, local_files_only=True, variant="fp16" if half else None
        )
    else:
        family = "sdxl" if (path.with_suffix(".config") / "text_encoder_2").is_dir() else "sd15"
        with tempfile.TemporaryDirectory() as scratch:
            configs = shutil.copytree(config_folder(path, family), Path(scratch) / "configs")
            (configs / "model_index.json").write_text(_model_index(family))
            pipeline = PIPELINES[family].from_single_file(
                str(path),
                config=str(configs),
                torch_dtype=dtype,
                local_files_only=True,
                **_extras(family),
            )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _random_parts(family: str, seed: int, prediction: str) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        narrow, wide = TEXT_WIDTHS
        parts = {
            "unet": UNet2DConditionModel(**(UNET_SDXL if family == "sdxl" else UNET_SD15)),
            "vae": AutoencoderKL(**VAE, scaling_factor=SCALING[family]),
            "text_encoder": CLIPTextModel(_clip(narrow, 2, hidden_act="quick_gelu")),
            "scheduler": EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                prediction_type=prediction,
            ),
        }
        if family == "sdxl":
            # With fewer than ten layers diffusers would take the file for an SD1.5 one.
            config = _clip(wide, 11, hidden_act="gelu", pad_token_id=0)
            parts["text_encoder_2"] = CLIPTextModelWithProjection(config)
    return parts


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


def _assemble(family: str, parts: dict[str, Any]) -> Any:
    return PIPELINES[family](**parts, **_extras(family))


def _extras(family: str) -> dict[str, Any]:
    if family == "sdxl":
        return {"tokenizer": clip_tokenizer("eos"), "tokenizer_2": clip_tokenizer("zero")}
    return {"tokenizer": clip_tokenizer("eos"), **NO_CHECKER, "requires_safety_checker": False}


def _model_index(family: str) -> str:
    index: dict[str, Any] = {
        "_class_name": PIPELINES[family].__name__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if family == "sdxl":
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {name: [None, None] for name in NO_CHECKER}
        index["requires_safety_checker"] = False
    return json.dumps(index)


def _original(family: str, parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = {name: part.state_dict() for name, part in parts.items() if hasattr(part, "state_dict")}
    weights = original_layout.unet(state["unet"], LAYERS_PER_BLOCK)
    weights |= original_layout.vae(state["vae"])
    if family == "sd15":
        prefix = "cond_stage_model.transformer."
    else:
        prefix = "conditioner.embedders.0.transformer."
        second = original_layout.open_clip(
            state["text_encoder_2"], "conditioner.embedders.1.model."
        )
        weights |= second
    weights |= original_layout.clip(state["text_encoder"], prefix)
    return {name: weight.contiguous() for name, weight in weights.items()}

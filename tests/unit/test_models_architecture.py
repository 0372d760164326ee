"""recognise: the family of a checkpoint from names and shapes, and names for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from farm.errors import CheckpointError
from farm.worker.models.architecture import recognise, recognise_folder
from farm.worker.models.header import Header, TensorEntry

UNET = {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)}
VAE = {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}
SD15 = {**UNET, **VAE, "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)}
SDXL = {
    **UNET,
    **VAE,
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}


def header(shapes: dict[str, tuple[int, ...]], dtype: str = "F16", **metadata: str) -> Header:
    entries = {name: TensorEntry(dtype, shape, 0, 0) for name, shape in shapes.items()}
    return Header(Path("x.safetensors"), MappingProxyType(entries), metadata, 0, (0, 0, 0))


def with_inputs(channels: int) -> dict[str, tuple[int, ...]]:
    return {**SD15, "model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3)}


@pytest.mark.parametrize(("shapes", "family"), [(SD15, "sd15"), (SDXL, "sdxl")])
def test_both_families_are_told_apart(shapes: dict[str, tuple[int, ...]], family: str) -> None:
    known = recognise(header(shapes, "BF16"))
    assert (known.family, known.dtype, known.layout) == (family, "BF16", "single")
    assert known.prediction is None


def test_a_marker_tensor_or_metadata_says_v_prediction() -> None:
    assert recognise(header({**SDXL, "v_pred": (0,)})).prediction == "v_prediction"
    said = {"modelspec.prediction_type": "v"}
    assert recognise(header(SDXL, **said)).prediction == "v_prediction"
    said = {"modelspec.prediction_type": "epsilon"}
    assert recognise(header(SDXL, **said)).prediction is None


@pytest.mark.parametrize(
    ("shapes", "looks_like"),
    [
        ({**UNET, **VAE, "cond_stage_model.model.ln_final.weight": (1024,)}, "Diffusion 2"),
        ({**UNET, **VAE, "conditioner.embedders.0.model.ln_final.weight": (1280,)}, "refiner"),
        (with_inputs(9), "an inpainting model"),
        (with_inputs(8), "InstructPix2Pix"),
        (with_inputs(5), "depth"),
        (with_inputs(16), "16 input channels"),
        ({"lora_unet_down_blocks_0.lora_up.weight": (4, 4)}, "a LoRA"),
        ({"lora_unet_x.hada_w1_a": (4, 4)}, "a LoRA"),
        ({"x.lokr_w1": (4, 4)}, "LyCORIS"),
        ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}, "a ControlNet"),
        ({"model.diffusion_model.joint_blocks.0.x": (4,)}, "Stable Diffusion 3"),
        ({"double_blocks.0.img_attn.qkv.weight": (4, 4)}, "Flux"),
        ({"emb_params": (4, 768)}, "textual inversion"),
        ({"down_blocks.0.resnets.0.conv1.weight": (4, 4, 3, 3)}, "UNet of a diffusers folder"),
        ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "a VAE alone"),
        ({"text_model.encoder.layers.0.layer_norm1.weight": (768,)}, "a text encoder alone"),
        ({"lm_head.weight": (32000, 4096)}, "something else"),
    ],
)
def test_the_rest_is_named_and_refused(shapes: dict[str, tuple[int, ...]], looks_like: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        recognise(header(shapes))
    assert looks_like in caught.value.message
    assert "SD1.5 and SDXL" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("part", "complaint"),
    [("first_stage_model.", "holds no VAE"), ("cond_stage_model.", "holds no text encoder")],
)
def test_a_file_without_one_of_its_parts(part: str, complaint: str) -> None:
    shapes = {name: shape for name, shape in SD15.items() if not name.startswith(part)}
    with pytest.raises(CheckpointError, match=complaint):
        recognise(header(shapes))


def folder(path: Path, kind: str, **unet: Any) -> Path:
    (path / "unet").mkdir(parents=True)
    (path / "text_encoder").mkdir()
    (path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    config = {"in_channels": 4, "cross_attention_dim": 768, **unet}
    (path / "unet" / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("kind", "family"),
    [("StableDiffusionPipeline", "sd15"), ("StableDiffusionXLPipeline", "sdxl")],
)
def test_diffusers_folders(tmp_path: Path, kind: str, family: str) -> None:
    known = recognise_folder(folder(tmp_path / "m", kind))
    assert (known.family, known.layout) == (family, "diffusers")


@pytest.mark.parametrize(
    ("kind", "unet", "looks_like"),
    [
        ("FluxPipeline", {}, "FluxPipeline"),
        ("StableDiffusionPipeline", {"in_channels": 9}, "9 input channels"),
        ("StableDiffusionPipeline", {"cross_attention_dim": 1024}, "Stable Diffusion 2"),
    ],
)
def test_other_folders(tmp_path: Path, kind: str, unet: dict[str, Any], looks_like: str) -> None:
    with pytest.raises(CheckpointError, match=looks_like):
        recognise_folder(folder(tmp_path / "m", kind, **unet))


def test_the_refiner_folder_has_one_text_encoder_too_few(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", "StableDiffusionXLPipeline")
    (path / "text_encoder").rmdir()
    with pytest.raises(CheckpointError, match="refiner"):
        recognise_folder(path)


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_broken_model_index(tmp_path: Path, content: str) -> None:
    path = folder(tmp_path / "m", "StableDiffusionPipeline")
    (path / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match="model_index"):
        recognise_folder(path)

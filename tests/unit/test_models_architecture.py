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
MIDDLE = {"model.diffusion_model.middle_block.1.norm.weight": (1280,)}
SD15 = {**UNET, **VAE, "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,)}
SD2 = {**UNET, **VAE, "cond_stage_model.model.ln_final.weight": (1024,)}
SSD1B = {
    **UNET,
    **VAE,
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
    "conditioner.embedders.1.model.ln_final.weight": (1280,),
}
SDXL = {**SSD1B, **MIDDLE}
REFINER = {**UNET, **VAE, **MIDDLE, "conditioner.embedders.0.model.ln_final.weight": (1280,)}


def header(
    shapes: dict[str, tuple[int, ...]],
    dtype: str = "F16",
    path: Path = Path("x.safetensors"),
    **metadata: str,
) -> Header:
    entries = {name: TensorEntry(dtype, shape, 0, 0) for name, shape in shapes.items()}
    return Header(path, MappingProxyType(entries), metadata, 0, (0, 0, 0))


def with_inputs(
    channels: int, shapes: dict[str, tuple[int, ...]] = SD15
) -> dict[str, tuple[int, ...]]:
    return {**shapes, "model.diffusion_model.input_blocks.0.0.weight": (320, channels, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        (SD15, "sd15"),
        (SD2, "sd2"),
        (SDXL, "sdxl"),
        (REFINER, "sdxl-refiner"),
        (SSD1B, "ssd1b"),
    ],
)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3"])
def test_families_are_told_apart(
    shapes: dict[str, tuple[int, ...]], family: str, dtype: str
) -> None:
    known = recognise(header(shapes, dtype))
    assert (known.family, known.dtype, known.layout) == (family, dtype, "single")
    assert (known.in_channels, known.has_vae, known.zero_snr) == (4, True, False)
    assert (known.prediction, known.few_steps) == (None, None)


@pytest.mark.parametrize("shapes", [SD15, SD2, SDXL])
def test_inpainting_models_have_nine_inputs(shapes: dict[str, tuple[int, ...]]) -> None:
    for channels in (8, 9):
        known = recognise(header(with_inputs(channels, shapes)))
        assert known.in_channels == channels
    assert known.family == recognise(header(shapes)).family


def test_what_training_leaves_behind_changes_nothing() -> None:
    left = {"model_ema.decay": (), "model_ema.diffusion_modelout2weight": (4,), "betas": (1000,)}
    dtype = TensorEntry("F32", (9,), 0, 0)
    plain, full = header(SD2), header({**left, **SD2})
    bulk = {f"model_ema.{number}": dtype for number in range(9)}
    ema = Header(full.path, MappingProxyType({**bulk, **full.tensors}), {}, 0, (0, 0, 0))
    assert recognise(plain) == recognise(full) == recognise(ema)


def test_without_a_vae() -> None:
    shapes = {name: shape for name, shape in SD15.items() if "first_stage" not in name}
    assert not recognise(header(shapes)).has_vae


@pytest.mark.parametrize(
    ("marks", "metadata", "prediction"),
    [
        ({"v_pred": (0,)}, {}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ({}, {"modelspec.architecture": "stable-diffusion-xl-v1-base"}, None),
        ({}, {}, None),
    ],
)
def test_what_it_predicts(
    marks: dict[str, tuple[int, ...]], metadata: dict[str, str], prediction: str | None
) -> None:
    assert recognise(header({**SD2, **marks}, "F16", **metadata)).prediction == prediction


V_SCALING = "sgm.modules.diffusionmodules.denoiser_scaling.VScaling"
XL_YAML = "model: {params: {denoiser_config: {params: {scaling_config: {target: %s}}}}}"


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ("model: {params: {parameterization: v}}", "v_prediction"),
        ("model: {params: {parameterization: eps}}", "epsilon"),
        ("model: {params: {linear_start: 0.00085}}", "epsilon"),
        (XL_YAML % V_SCALING, "v_prediction"),
        (XL_YAML % V_SCALING.replace("VScaling", "EpsScaling"), "epsilon"),
        ("model: {params: &a {denoiser_config: *a}}", "epsilon"),
    ],
)
def test_the_yaml_beside_it_goes_first(tmp_path: Path, text: str, prediction: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    said = {"modelspec.prediction_type": "epsilon" if prediction == "v_prediction" else "v"}
    path = tmp_path / "m.safetensors"
    assert recognise(header(SD2, "F16", path, **said)).prediction == prediction


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("model: {", "m.yaml cannot be read as YAML"),
        ("[" * 1000, "m.yaml cannot be read as YAML"),
        ("!!python/object/apply:os.mkdir ['ran']", "m.yaml cannot be read as YAML"),
        ("just text", "m.yaml has no model.params"),
        ("model: {}", "m.yaml has no model.params"),
        ("model: {params: 7}", "no table in model.params"),
        ("model: {params: {parameterization: x0}}", "'x0' for parameterization"),
        ("# " + "x" * 64_000, "too large"),
    ],
)
def test_a_broken_yaml_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        recognise(header(SD2, "F16", tmp_path / "m.safetensors"))
    assert caught.value.remedy
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("marks", "metadata"), [({"ztsnr": (0,)}, {}), ({}, {"ss_zero_terminal_snr": "True"})]
)
def test_zero_terminal_snr(marks: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> None:
    assert recognise(header({**SDXL, **marks}, "F16", **metadata)).zero_snr


@pytest.mark.parametrize(
    ("stem", "title", "few_steps"),
    [
        ("sd_xl_turbo_1.0_fp16", "", "turbo"),
        ("dreamshaperXL_v21TurboDPMSDE", "", "turbo"),
        ("sdxl_lightning_4step", "", "lightning"),
        ("model", "A Lightning merge", "lightning"),
        ("model", "", None),
    ],
)
def test_models_for_few_steps_are_known_by_their_names(
    stem: str, title: str, few_steps: str | None
) -> None:
    said = {"modelspec.title": title}
    known = recognise(header(SDXL, "F16", Path(f"{stem}.safetensors"), **said))
    assert (known.family, known.few_steps) == ("sdxl", few_steps)


@pytest.mark.parametrize(
    ("shapes", "stem", "metadata", "side"),
    [
        (SD15, "m", {}, 512),
        (SD2, "m", {}, 512),
        (SD2, "m", {"modelspec.prediction_type": "v"}, 768),
        (SDXL, "m", {}, 1024),
        (SDXL, "m", {"modelspec.resolution": "768x768"}, 768),
        (SDXL, "m", {"modelspec.resolution": "768x512"}, 1024),
        (SDXL, "sd_xl_turbo_1.0", {}, 512),
        (SDXL, "another-turbo", {}, 1024),
    ],
)
def test_the_side_it_was_trained_at(
    shapes: dict[str, tuple[int, ...]], stem: str, metadata: dict[str, str], side: int
) -> None:
    known = recognise(header(shapes, "F16", Path(f"{stem}.safetensors"), **metadata))
    assert known.side == side


@pytest.mark.parametrize(
    ("shapes", "looks_like"),
    [
        (with_inputs(7), "upscaling"),
        (with_inputs(5, SD2), "depth"),
        ({**SD2, "noise_augmentor.data_mean": (1, 768)}, "unCLIP"),
        ({**SDXL, "edm_mean": (1, 4, 1, 1)}, "Playground"),
        ({**SDXL, "edm_vpred.sigma_max": ()}, "CosXL"),
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
    assert "Stable Diffusion 1, 2 and XL" in str(caught.value.remedy)


def test_a_file_without_a_text_encoder() -> None:
    shapes = {name: shape for name, shape in SD15.items() if "cond_stage" not in name}
    with pytest.raises(CheckpointError, match="holds no text encoder"):
        recognise(header(shapes))


def folder(path: Path, kind: str, *, act: str | None = "quick_gelu", **unet: Any) -> Path:
    """A diffusers folder with a first text encoder of this activation, or none."""
    (path / "unet").mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    (path / "unet" / "config.json").write_text(json.dumps({"in_channels": 4, **unet}))
    if act:
        (path / "text_encoder").mkdir()
        (path / "text_encoder" / "config.json").write_text(json.dumps({"hidden_act": act}))
    return path


@pytest.mark.parametrize(
    ("kind", "act", "unet", "family"),
    [
        ("StableDiffusionPipeline", "quick_gelu", {}, "sd15"),
        ("StableDiffusionPipeline", "gelu", {}, "sd2"),
        ("StableDiffusionInpaintPipeline", "quick_gelu", {"in_channels": 9}, "sd15"),
        ("StableDiffusionInpaintPipeline", "gelu", {"in_channels": 9}, "sd2"),
        ("StableDiffusionXLPipeline", "quick_gelu", {}, "sdxl"),
        ("StableDiffusionXLPipeline", "quick_gelu", {"mid_block_type": "UNetMidBlock2D"}, "ssd1b"),
        ("StableDiffusionXLImg2ImgPipeline", None, {}, "sdxl-refiner"),
        ("StableDiffusionXLInpaintPipeline", "quick_gelu", {"in_channels": 9}, "sdxl"),
    ],
)
def test_diffusers_folders(
    tmp_path: Path, kind: str, act: str | None, unet: dict[str, Any], family: str
) -> None:
    known = recognise_folder(folder(tmp_path / "m", kind, act=act, **unet))
    assert (known.family, known.layout) == (family, "diffusers")
    assert known.in_channels == unet.get("in_channels", 4)


@pytest.mark.parametrize(
    ("kind", "unet", "looks_like"),
    [
        ("FluxPipeline", {}, "FluxPipeline"),
        ("StableDiffusionPipeline", {"in_channels": 5}, "depth-to-image"),
        ("StableDiffusionPipeline", {"in_channels": [4]}, "input channels"),
    ],
)
def test_other_folders(tmp_path: Path, kind: str, unet: dict[str, Any], looks_like: str) -> None:
    with pytest.raises(CheckpointError, match=looks_like):
        recognise_folder(folder(tmp_path / "m", kind, **unet))


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_broken_model_index(tmp_path: Path, content: str) -> None:
    path = folder(tmp_path / "m", "StableDiffusionPipeline")
    (path / "model_index.json").write_text(content)
    with pytest.raises(CheckpointError, match="model_index"):
        recognise_folder(path)

"""What kind of model a file or folder holds, told from names and shapes alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import CheckpointError
from farm.worker.models.header import Header, damaged

UNET = "model.diffusion_model."
MODEL_INDEX = "model_index.json"
NATIVE_SIDES = {"sd15": 512, "sdxl": 1024}
UNET_INPUTS = {
    5: "a depth-to-image model",
    8: "an InstructPix2Pix model",
    9: "an inpainting model",
}
PIPELINES = {"StableDiffusionPipeline": "sd15", "StableDiffusionXLPipeline": "sdxl"}
SD2_TEXT_WIDTH = 1024


@dataclass(frozen=True)
class Architecture:
    """A kind of model.

    Attributes:
        family: ``sd15`` or ``sdxl``.
        prediction: ``epsilon`` or ``v_prediction``; None where the scheduler config decides.
        dtype: what most weights are stored in, as safetensors writes it (``F16``); None for a
            diffusers folder.
        layout: ``single`` for one file with the original key names, or ``diffusers``.
    """

    family: str
    prediction: str | None
    dtype: str | None
    layout: str


def _has(header: Header, part: str) -> bool:
    return any(part in name for name in header.tensors)


def _starts(header: Header, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in header.tensors)


# In this order: the first that holds names the file. Only looked at where there is no SD UNet.
STRANGERS: tuple[tuple[str, Callable[[Header], bool]], ...] = (
    ("a LoRA", lambda header: _has(header, "lora_") or _has(header, ".lora.")),
    ("a LyCORIS network", lambda header: _has(header, ".hada_w1_a") or _has(header, ".lokr_w1")),
    ("a ControlNet", lambda header: _starts(header, "control_model.")),
    ("a Stable Diffusion 3 model", lambda header: _has(header, "joint_blocks.")),
    ("a Flux model", lambda header: _has(header, "double_blocks.")),
    (
        "a textual inversion embedding",
        lambda header: "emb_params" in header.tensors or "clip_g" in header.tensors,
    ),
    (
        "the UNet of a diffusers folder, which needs the folder around it",
        lambda header: _starts(header, "down_blocks."),
    ),
    (
        "a VAE alone",
        lambda header: _starts(header, "first_stage_model.") or _starts(header, "decoder."),
    ),
    ("a text encoder alone", lambda header: _has(header, "text_model.encoder.")),
)


def recognise(header: Header) -> Architecture:
    """The architecture of a single file.

    Raises:
        CheckpointError: anything but SD1.5 and SDXL; says what the file looks like.
    """
    first = header.tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4:
        looks = (name for name, holds in STRANGERS if holds(header))
        raise unsupported(header.path, next(looks, "something else"))
    if first.shape[1] != 4:
        channels = first.shape[1]
        kind = UNET_INPUTS.get(channels, f"a model with {channels} input channels")
        raise unsupported(header.path, kind)
    family = _family(header)
    if not _starts(header, "first_stage_model."):
        raise damaged(header.path, "holds no VAE", "Use a version of it with its VAE baked in.")
    dtypes = Counter(entry.dtype for name, entry in header.tensors.items() if name.startswith(UNET))
    return Architecture(family, _prediction(header), dtypes.most_common(1)[0][0], "single")


def recognise_folder(folder: Path) -> Architecture:
    """The architecture of a diffusers folder, from its ``model_index.json``.

    Raises:
        CheckpointError: anything but SD1.5 and SDXL; says what the folder looks like.
    """
    kind = str(read_config(folder / MODEL_INDEX).get("_class_name"))
    unet = read_config(folder / "unet" / "config.json")
    if kind not in PIPELINES:
        raise unsupported(folder, f"a folder for {kind}")
    if unet.get("in_channels") != 4:
        raise unsupported(folder, f"a model with {unet.get('in_channels')} input channels")
    family = PIPELINES[kind]
    if family == "sd15" and unet.get("cross_attention_dim") == SD2_TEXT_WIDTH:
        raise unsupported(folder, "a Stable Diffusion 2 model")
    if family == "sdxl" and not (folder / "text_encoder").is_dir():
        raise unsupported(folder, "an SDXL refiner")
    return Architecture(family, None, None, "diffusers")


def unsupported(path: Path, what: str) -> CheckpointError:
    """The error for a model of another kind."""
    return damaged(path, f"looks like {what}", "This version supports SD1.5 and SDXL checkpoints.")


def read_config(path: Path) -> Mapping[str, Any]:
    """A JSON table; raises :class:`CheckpointError` where it is missing or broken."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise damaged(path.parent, f"lacks its {path.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, "cannot be read as JSON") from error
    if not isinstance(config, dict):
        raise damaged(path, "is not a JSON table")
    return config


def _family(header: Header) -> str:
    if _starts(header, "conditioner.embedders.1.model."):
        return "sdxl"
    if _starts(header, "conditioner.embedders.0.model."):
        raise unsupported(header.path, "an SDXL refiner")
    if _starts(header, "cond_stage_model.model."):
        raise unsupported(header.path, "a Stable Diffusion 2 model")
    if _starts(header, "cond_stage_model.transformer."):
        return "sd15"
    raise damaged(
        header.path, "holds no text encoder", "Use a version of it with its text encoder baked in."
    )


def _prediction(header: Header) -> str | None:
    """Trainers mark v-prediction by an empty tensor or in the metadata (modelspec)."""
    said = header.metadata.get("modelspec.prediction_type", "")
    return "v_prediction" if "v_pred" in header.tensors or said == "v" else None

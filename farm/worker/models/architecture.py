"""What kind of model a file or folder holds, told from names and shapes alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import CheckpointError
from farm.worker.models.files import open_file
from farm.worker.models.header import Header, damaged
from farm.worker.models.sidecars import prediction_in_yaml

UNET = "model.diffusion_model."
VAE = "first_stage_model."
MODEL_INDEX = "model_index.json"
FAMILIES = ("sd15", "sd2", "sdxl", "sdxl-refiner", "ssd1b")
INPUTS = (4, 8, 9)
OTHER_INPUTS = {"5": "a depth-to-image model", "7": "an upscaling model"}
PIPELINES = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionInpaintPipeline": "sd15",
    "StableDiffusionInstructPix2PixPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
    "StableDiffusionXLInstructPix2PixPipeline": "sdxl",
}
NATIVE_SIDES = {"sd15": 512, "sd2": 512, "sdxl": 1024, "sdxl-refiner": 1024, "ssd1b": 1024}
SD2_V_SIDE, TURBO_SIDE = 768, 512
RESOLUTION = re.compile(r"(\d{2,4})x\1")
TURBO_ITSELF = re.compile(r"sd[-_]?(xl)?[-_]?turbo")
FEW_STEPS = ("lightning", "turbo")


@dataclass(frozen=True)
class Architecture:
    """A kind of model.

    Attributes:
        family: one of :data:`FAMILIES`. SD1.x is ``sd15``, SD2.x ``sd2``; ``ssd1b`` is SDXL with
            fewer blocks.
        prediction: ``epsilon`` or ``v_prediction``; None where neither the file nor its
            ``.yaml`` says so.
        dtype: what most weights are stored in, as safetensors writes it (``F16``); None for a
            diffusers folder.
        layout: ``single`` for one file with the original key names, or ``diffusers``.
        in_channels: of the UNet: 4, or 8 for a model for editing (InstructPix2Pix), or 9 for one
            for inpainting.
        has_vae: whether its VAE is in the file.
        zero_snr: trained so that nothing of the picture is left at the last timestep.
        few_steps: ``turbo`` or ``lightning`` where name or title say that it needs only a few
            steps. The weights look like any others, so nothing but defaults depends on it.
        side: pixels of the side it was trained at, as far as can be told from the outside.
    """

    family: str
    prediction: str | None
    dtype: str | None
    layout: str
    side: int
    in_channels: int = 4
    has_vae: bool = True
    zero_snr: bool = False
    few_steps: str | None = None


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
    ("a VAE alone", lambda header: _starts(header, VAE) or _starts(header, "decoder.")),
    ("a text encoder alone", lambda header: _has(header, "text_model.encoder.")),
)
# With an SD UNet, and yet nothing that can be sampled as SD is.
RELATIVES: tuple[tuple[str, Callable[[Header], bool]], ...] = (
    ("a Playground 2.5 model", lambda header: "edm_mean" in header.tensors),
    ("a CosXL model", lambda header: _starts(header, "edm_vpred.")),
    ("an unCLIP model", lambda header: _starts(header, "noise_augmentor.")),
)


def recognise(header: Header) -> Architecture:
    """The architecture of a single file; a ``.yaml`` beside it may say what it predicts.

    Raises:
        CheckpointError: anything but the :data:`FAMILIES`; says what the file looks like.
    """
    first = header.tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4:
        looks = (name for name, holds in STRANGERS if holds(header))
        raise unsupported(header.path, next(looks, "something else"))
    channels = first.shape[1]
    _check_inputs(header.path, channels)
    for name, holds in RELATIVES:
        if holds(header):
            raise unsupported(header.path, name)
    dtypes = Counter(entry.dtype for name, entry in header.tensors.items() if name.startswith(UNET))
    family, prediction = _family(header), prediction_in_yaml(header.path) or _prediction(header)
    return Architecture(
        family=family,
        prediction=prediction,
        dtype=dtypes.most_common(1)[0][0],
        layout="single",
        side=_side(header, family, prediction),
        in_channels=channels,
        has_vae=_starts(header, VAE),
        zero_snr=_zero_snr(header),
        few_steps=_few_steps(header.path.stem, header.metadata.get("modelspec.title", "")),
    )


def recognise_folder(folder: Path) -> Architecture:
    """The architecture of a diffusers folder, from its ``model_index.json`` and configs.

    Raises:
        CheckpointError: anything but the :data:`FAMILIES`; says what the folder looks like.
    """
    kind = str(read_config(folder / MODEL_INDEX).get("_class_name"))
    unet = read_config(folder / "unet" / "config.json")
    if kind not in PIPELINES:
        raise unsupported(folder, f"a folder for {kind}")
    channels = unet.get("in_channels", 4)
    _check_inputs(folder, channels)
    family = _folder_family(PIPELINES[kind], folder, unet)
    return Architecture(
        family=family,
        prediction=None,
        dtype=None,
        layout="diffusers",
        side=NATIVE_SIDES[family],
        in_channels=channels,
        has_vae=(folder / "vae").is_dir(),
        few_steps=_few_steps(folder.name),
    )


def unsupported(path: Path, what: str) -> CheckpointError:
    """The error for a model of another kind."""
    return damaged(
        path,
        f"looks like {what}",
        "As a checkpoint, Farm takes Stable Diffusion 1, 2 and XL, SDXL's refiner, and SSD-1B.",
    )


def read_config(path: Path) -> Mapping[str, Any]:
    """A JSON table; raises :class:`CheckpointError` where it is missing or broken."""
    try:
        with open_file(path) as file:
            config = json.load(file)
    except FileNotFoundError as error:
        raise damaged(path.parent, f"lacks its {path.name}") from error
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}", "Check the file.") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "cannot be read as JSON") from error
    if not isinstance(config, dict):
        raise damaged(path, "is not a JSON table")
    return config


def _check_inputs(path: Path, channels: Any) -> None:
    if channels not in INPUTS:
        kind = f"a model with {channels} input channels"
        raise unsupported(path, OTHER_INPUTS.get(str(channels), kind))


def _family(header: Header) -> str:
    if _starts(header, "conditioner.embedders.1.model."):
        return "sdxl" if _starts(header, f"{UNET}middle_block.1.") else "ssd1b"
    if _starts(header, "conditioner.embedders.0.model."):
        return "sdxl-refiner"
    if _starts(header, "cond_stage_model.model."):
        return "sd2"
    if _starts(header, "cond_stage_model.transformer."):
        return "sd15"
    raise damaged(
        header.path, "holds no text encoder", "Use a version of it with its text encoder baked in."
    )


def _folder_family(base: str, folder: Path, unet: Mapping[str, Any]) -> str:
    if base == "sdxl":
        if not (folder / "text_encoder").is_dir():
            return "sdxl-refiner"
        whole = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn"
        return "sdxl" if whole else "ssd1b"
    # OpenAI's CLIP alone has this activation; SD2 reads OpenCLIP's H, which pads otherwise too.
    text = read_config(folder / "text_encoder" / "config.json")
    return "sd15" if text.get("hidden_act", "quick_gelu") == "quick_gelu" else "sd2"


def _prediction(header: Header) -> str | None:
    """Trainers mark v-prediction by an empty tensor or in the metadata (modelspec)."""
    said = header.metadata.get("modelspec.prediction_type")
    kind = header.metadata.get("modelspec.architecture", "")
    if "v_pred" in header.tensors or said == "v" or kind.startswith("stable-diffusion-v2-768-v"):
        return "v_prediction"
    if said == "epsilon" or kind.startswith("stable-diffusion-v2-512"):
        return "epsilon"
    return None


def _side(header: Header, family: str, prediction: str | None) -> int:
    said = RESOLUTION.fullmatch(header.metadata.get("modelspec.resolution", ""))
    if said:
        return int(said[1])
    if TURBO_ITSELF.match(header.path.stem.lower()):
        return TURBO_SIDE
    if family == "sd2" and prediction == "v_prediction":
        return SD2_V_SIDE
    return NATIVE_SIDES[family]


def _zero_snr(header: Header) -> bool:
    return "ztsnr" in header.tensors or header.metadata.get("ss_zero_terminal_snr") == "True"


def _few_steps(*names: str) -> str | None:
    text = " ".join(names).lower()
    return next((kind for kind in FEW_STEPS if kind in text), None)

"""Checkpoints of full size with random weights, for measuring where no real one is at hand."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from farm.worker.models.catalogue import BUNDLES
from farm.worker.models.parts import build_on_meta, parts_of
from tests import original_layout

BLOCK = 16 * 2**20
PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}


def write(path: Path, family: str, *, zeros: bool = False) -> None:
    """A random float16 checkpoint in the original layout, written block by block.

    Args:
        family: ``sdxl``, 6.9 GB, or ``sd15``, 2.1 GB.
        zeros: all weights are 0, and take no place on a disk.
    """
    shapes = _original(family)
    index, place = {}, 0
    for name, weight in shapes.items():
        end = place + 2 * weight.numel()
        index[name] = {"dtype": "F16", "shape": list(weight.shape), "data_offsets": [place, end]}
        place = end
    header = json.dumps(index).encode()
    if zeros:
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(file.tell() + place)
        return
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(BLOCK // 2, generator=generator) * 0.02).half().numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for begin in range(0, place, BLOCK):
            file.write(noise[: place - begin])
        os.fsync(file.fileno())


def pipeline_folder(family: str, target: Path) -> Path:
    """Configs as diffusers' ``from_single_file(config=...)`` wants them."""
    shutil.copytree(BUNDLES / family, target)
    xl = family == "sdxl"
    index = {part: kind for part, kind in PARTS.items() if xl or not part.endswith("_2")}
    if not xl:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
    name = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    (target / "model_index.json").write_text(json.dumps({"_class_name": name, **index}))
    return target


def _original(family: str) -> dict[str, torch.Tensor]:
    state = {
        part.name: build_on_meta(part, BUNDLES / family).state_dict() for part in parts_of(family)
    }
    shared = {
        **original_layout.unet(state["unet"], 2),
        **original_layout.vae(state["vae"]),
    }
    if family == "sd15":
        return shared | original_layout.clip(state["text_encoder"], "cond_stage_model.transformer.")
    return {
        **shared,
        **original_layout.clip(state["text_encoder"], "conditioner.embedders.0.transformer."),
        **original_layout.open_clip(state["text_encoder_2"], "conditioner.embedders.1.model."),
    }

"""The shipped configs are those of the published models, told apart by the index alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from farm.worker.memory.weights import PARAMETERS, TEXT_PARAMETERS
from farm.worker.models.architecture import recognise
from farm.worker.models.catalogue import BUNDLES
from farm.worker.models.header import Header, TensorEntry
from farm.worker.models.origin import Origin
from farm.worker.models.parts import build_on_meta, parts_of
from tests import original_layout
from tests.checkpoints import FAMILIES, TEXT_PREFIXES

CPU = torch.device("cpu")
# From the published configs; Farm itself counts them in the file.
DEPTHS: dict[str, dict[str, Any]] = {
    "ssd1b": {
        "transformer_layers_per_block": [1, [2, 2], [4, 4]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    }
}


@cache
def full_size_header(family: str, channels: int = 4) -> Header:
    """The index of a full-size single file, its names by the test's own spelling."""
    unet = {**DEPTHS.get(family, {}), "in_channels": channels}
    state = {
        part.name: dict(
            build_on_meta(part, BUNDLES / family, unet if part.name == "unet" else {}).state_dict()
        )
        for part in parts_of(family)
    }
    weights = original_layout.unet(state["unet"], layers_per_block=2)
    weights |= original_layout.vae(state["vae"])
    for name, prefix in TEXT_PREFIXES[family].items():
        if prefix.endswith(".transformer."):
            weights |= original_layout.clip(state[name], prefix)
        else:
            weights |= original_layout.open_clip(state[name], prefix, cut=family == "sd2")
    entries = {
        name: TensorEntry("F16", tuple(weight.shape), 0, 0) for name, weight in weights.items()
    }
    return Header(Path("full.safetensors"), MappingProxyType(entries), {}, 0, (0, 0, 0))


XL = {"vae": 83.7, "text_encoder": 123.1, "text_encoder_2": 694.7}


@pytest.mark.parametrize(
    ("family", "channels", "millions"),
    [
        ("sd15", 4, {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1}),
        ("sd15", 9, {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1}),
        ("sd2", 4, {"unet": 865.9, "vae": 83.7, "text_encoder": 340.4}),
        ("sdxl", 4, {"unet": 2567.5, **XL}),
        ("ssd1b", 4, {"unet": 1331.3, **XL}),
        ("sdxl-refiner", 4, {"unet": 2259.5, "vae": 83.7, "text_encoder_2": 694.7}),
    ],
)
def test_shipped_configs_are_the_published_architectures(
    family: str, channels: int, millions: dict[str, float]
) -> None:
    header = full_size_header(family, channels)
    architecture = recognise(header)
    assert (architecture.family, architecture.in_channels) == (family, channels)
    origin = Origin(architecture, BUNDLES / family, header, None)
    sizes = {}
    for part in parts_of(family):
        plan = origin.plan(part, torch.float16, CPU)
        plan.check()
        names = plan.sources[0].names
        shapes = {name: torch.empty(header.tensors[name].shape, device="meta") for name in names}
        assert part.translate(shapes, plan.module).keys() == plan.module.state_dict().keys()
        sizes[part.name] = plan.bytes / 2e6
    assert sizes == pytest.approx(millions, abs=0.06)
    assert PARAMETERS[family] / 1e6 == pytest.approx(sum(sizes.values()), abs=0.1)
    texts = [size for name, size in sizes.items() if name.startswith("text")]
    assert TEXT_PARAMETERS[family] / 1e6 == pytest.approx(sum(texts), abs=0.1)


UNET = "model.diffusion_model."


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_the_published_files(family: str) -> None:
    tensors = full_size_header(family).tensors
    for name, shape in PUBLISHED[family].items():
        found = tensors[name].shape if name in tensors else None
        assert found == shape, name


# Spelled by hand from the published files, so that the two spellings in this repository cannot
# agree on a mistake. None: there is no such weight.
PUBLISHED: dict[str, dict[str, tuple[int, ...] | None]] = {
    "sd15": {
        UNET + "time_embed.0.weight": (1280, 320),
        UNET + "input_blocks.3.0.op.weight": (320, 320, 3, 3),
        UNET + "input_blocks.7.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        UNET + "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        UNET + "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        UNET + "output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "first_stage_model.decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": (3072, 768),
    },
    "sd2": {
        UNET + "input_blocks.1.1.proj_in.weight": (320, 320),
        UNET + "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
        UNET + "label_emb.0.0.weight": None,
        "cond_stage_model.model.positional_embedding": (77, 1024),
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": (3072, 1024),
        "cond_stage_model.model.text_projection": (1024, 1024),
    },
    "sdxl": {
        UNET + "label_emb.0.0.weight": (1280, 2816),
        UNET + "input_blocks.4.1.proj_in.weight": (640, 640),
        UNET + "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        UNET + "middle_block.1.transformer_blocks.9.norm1.bias": (1280,),
        UNET + "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
    },
    "ssd1b": {
        UNET + "middle_block.0.in_layers.2.weight": (1280, 1280, 3, 3),
        UNET + "middle_block.1.norm.weight": None,
        UNET + "middle_block.2.in_layers.2.weight": None,
        UNET + "input_blocks.5.1.transformer_blocks.1.norm1.weight": (640,),
        UNET + "input_blocks.7.1.transformer_blocks.3.norm1.weight": (1280,),
        UNET + "input_blocks.8.1.transformer_blocks.4.norm1.weight": None,
        UNET + "output_blocks.1.1.transformer_blocks.3.norm1.weight": (1280,),
        UNET + "output_blocks.1.1.transformer_blocks.4.norm1.weight": None,
        UNET + "output_blocks.2.1.transformer_blocks.9.norm1.weight": (1280,),
        UNET + "output_blocks.3.1.transformer_blocks.1.norm1.weight": (640,),
        UNET + "output_blocks.4.1.transformer_blocks.1.norm1.weight": None,
    },
    "sdxl-refiner": {
        UNET + "input_blocks.0.0.weight": (384, 4, 3, 3),
        UNET + "label_emb.0.0.weight": (1536, 2560),
        UNET + "input_blocks.4.1.transformer_blocks.3.attn2.to_k.weight": (768, 1280),
        UNET + "input_blocks.10.1.norm.weight": None,
        UNET + "middle_block.1.transformer_blocks.3.attn2.to_k.weight": (1536, 1280),
        "conditioner.embedders.0.model.text_projection": (1280, 1280),
    },
}

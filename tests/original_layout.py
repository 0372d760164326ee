"""Names that Stable Diffusion's original training code gave its weights, from diffusers' names.

The inverse of what diffusers does when it reads a single file, written on its own so that tests
do not check a key map against itself.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

Weights = dict[str, Tensor]

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def unet(weights: Weights, layers_per_block: int) -> Weights:
    """``model.diffusion_model.*`` from a UNet2DConditionModel's state."""
    with_attention = {
        name.split(".")[1] for name in weights if "up_blocks" in name and "att" in name
    }
    return {
        "model.diffusion_model." + _unet_name(name, layers_per_block + 1, with_attention): weight
        for name, weight in weights.items()
    }


def _unet_name(name: str, stride: int, with_attention: set[str]) -> str:
    module, _, kind = name.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{kind}"
    if match := re.match(r"mid_block\.(\w+)\.(\d)\.(.*)", name):
        part, index, rest = match[1], int(match[2]), match[3]
        return f"middle_block.{1 if part == 'attentions' else 2 * index}.{_inner(part, rest)}"
    match = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name)
    assert match, name
    way, block, part, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    last = (block + 1) * stride
    if part == "downsamplers":
        return f"input_blocks.{last}.0.op.{kind}"
    if part == "upsamplers":
        place = 2 if match[2] in with_attention else 1
        return f"output_blocks.{last - 1}.{place}.conv.{kind}"
    number = block * stride + index + (1 if way == "down" else 0)
    side = "input" if way == "down" else "output"
    return f"{side}_blocks.{number}.{1 if part == 'attentions' else 0}.{_inner(part, rest)}"


def _inner(part: str, rest: str) -> str:
    return rest if part == "attentions" else _replaced(rest, UNET_RESNET)


def vae(weights: Weights, blocks: int = 4) -> Weights:
    """``first_stage_model.*`` from an AutoencoderKL's state; attention as 1x1 convolutions."""
    named = {}
    for name, weight in weights.items():
        original = _vae_name(name, blocks)
        is_attention = "attn_1" in original and weight.ndim == 2
        named[f"first_stage_model.{original}"] = weight[..., None, None] if is_attention else weight
    return named


def _vae_name(name: str, blocks: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}", name)
    name = name.replace(".resnets.", ".block.").replace("upsamplers.0", "upsample")
    name = re.sub(r"mid_block\.block\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0" in name:
        name = _replaced(name.replace("mid_block.attentions.0", "mid.attn_1"), VAE_ATTENTION)
    return name


def clip(weights: Weights, prefix: str) -> Weights:
    """``<prefix>text_model.*`` from a CLIPTextModel's state."""
    return {
        f"{prefix}text_model.{name.removeprefix('text_model.')}": weight
        for name, weight in weights.items()
    }


def open_clip(weights: Weights, prefix: str, *, cut: bool = False) -> Weights:
    """OpenCLIP's names from a CLIP model's state; q, k and v are one matrix.

    Args:
        cut: the state lacks what SD2 does not read, its last layer, number 23 in the file, and
            the projection; put something in their place.
    """
    text = {name.removeprefix("text_model."): weight for name, weight in weights.items()}
    named = {
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6052),
    }
    if cut:
        width = len(text["final_layer_norm.weight"])
        named["text_projection"] = torch.zeros(width, width)
        named["transformer.resblocks.23.ln_1.weight"] = torch.zeros(width)
    else:
        named["text_projection"] = text["text_projection.weight"].T.contiguous()
    layers = {name.split(".")[2] for name in text if name.startswith("encoder.layers.")}
    for layer in layers:
        ours, theirs = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            fused = [text[f"{ours}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            named[f"{theirs}attn.in_proj_{kind}"] = torch.cat(fused)
            for new, original in OPEN_CLIP_LAYER.items():
                named[f"{theirs}{original}.{kind}"] = text[f"{ours}{new}.{kind}"]
    return {prefix + name: weight for name, weight in named.items()}


def _replaced(name: str, table: dict[str, str]) -> str:
    for new, original in table.items():
        name = name.replace(new, original)
    return name

"""Which weight a network's key means: all the names that trainers give our modules.

Every name is brought to one form, its parts joined by ``_`` and its model in front, such as
``unet_down_blocks_1_attentions_0_proj_in``, and looked up in a table made from the modules
themselves. So nothing is taken apart again that was joined ambiguously.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

MODEL_PREFIXES = {
    "unet": ("unet_",),
    "text_encoder": ("te_", "te1_", "text_encoder_"),
    "text_encoder_2": ("te2_", "text_encoder_2_"),
}
RESNET = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE_BLOCKS = {
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
}
# How diffusers called them while attention processors held the networks.
OLD_ATTENTION = {
    "to_out_0": "to_out",
    "self_attn_q_proj": "self_attn_to_q",
    "self_attn_k_proj": "self_attn_to_k",
    "self_attn_v_proj": "self_attn_to_v",
    "self_attn_out_proj": "self_attn_to_out",
}


class Target(NamedTuple):
    """A weight: the model's name in the checkpoint, and the parameter's name in the model."""

    part: str
    parameter: str


def canonical(stem: str) -> str:
    """A key without its ending (``.lora_down.weight``), in the form of the table's names."""
    name = stem.removeprefix("base_model.model.")
    if "." in name and not name.startswith(("unet.", "text_encoder", "lora_")):
        name = f"unet.{name}"
    return name.replace(".processor.", ".").replace(".", "_").removeprefix("lora_")


def targets(modules: Mapping[str, nn.Module]) -> dict[str, Target]:
    """Every name that a key may have for a weight of these models, by part of the checkpoint."""
    table: dict[str, Target] = {}
    for part, prefixes in MODEL_PREFIXES.items():
        if part not in modules:
            continue
        module = modules[part]
        originals = dict(_original_blocks(module)) if part == "unet" else {}
        for path, inner in module.named_modules():
            if not isinstance(inner, nn.Linear | nn.Conv2d):
                continue
            target = Target(part, f"{path}.weight")
            for name in _names(path.replace(".", "_"), part, originals):
                table |= {prefix + name: target for prefix in prefixes}
    return table


def _names(path: str, part: str, originals: Mapping[str, str]) -> Iterator[str]:
    if part != "unet":
        # transformers 5.6 took ``text_model`` away from some modules; trainers still write it.
        path = path.removeprefix("text_model_")
        yield from _aliases(f"text_model_{path}")
    yield from _aliases(path)
    if path in OUTSIDE_BLOCKS:
        yield OUTSIDE_BLOCKS[path]
    for ours, original in originals.items():
        if path == ours or path.startswith(f"{ours}_"):
            inner = path[len(ours) + 1 :]
            yield f"{original}_{RESNET.get(inner, inner)}".removesuffix("_")


def _aliases(name: str) -> Iterator[str]:
    yield name
    for new, old in OLD_ATTENTION.items():
        if name.endswith(f"_{new}"):
            yield name.removesuffix(new) + old


def _original_blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """Our blocks and what the original training code, and so SDXL's trainers, call them."""
    number = 1
    for place, block in enumerate(unet.down_blocks):
        ours = f"down_blocks_{place}"
        for layer in range(len(block.resnets)):
            yield f"{ours}_resnets_{layer}", f"input_blocks_{number}_0"
            yield f"{ours}_attentions_{layer}", f"input_blocks_{number}_1"
            number += 1
        if block.downsamplers:
            yield f"{ours}_downsamplers_0_conv", f"input_blocks_{number}_0_op"
            number += 1
    number = 0
    for place, block in enumerate(unet.up_blocks):
        ours = f"up_blocks_{place}"
        for layer in range(len(block.resnets)):
            yield f"{ours}_resnets_{layer}", f"output_blocks_{number}_0"
            yield f"{ours}_attentions_{layer}", f"output_blocks_{number}_1"
            number += 1
        if block.upsamplers:
            after = 2 if getattr(block, "attentions", None) else 1
            yield f"{ours}_upsamplers_0_conv", f"output_blocks_{number - 1}_{after}_conv"
    yield "mid_block_resnets_0", "middle_block_0"
    yield "mid_block_attentions_0", "middle_block_1"
    yield "mid_block_resnets_1", "middle_block_2"

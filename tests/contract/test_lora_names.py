"""The names that real LoRAs have, on the real shapes of the families that ship as configs."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from torch import nn

from farm.worker.models.catalogue import BUNDLES
from farm.worker.models.lora import ENDINGS
from farm.worker.models.lora_names import Target, canonical, targets
from farm.worker.models.parts import build_on_meta, parts_of

NAMES = """
sd15 lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k
    unet down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k
sd15 lora_unet_mid_block_attentions_0_proj_in
    unet mid_block.attentions.0.proj_in
sd15 lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj
    unet up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj
sd15 lora_unet_output_blocks_2_1_conv
    unet up_blocks.0.upsamplers.0.conv
sd15 lora_unet_output_blocks_5_2_conv
    unet up_blocks.1.upsamplers.0.conv
sd15 lora_te_text_model_encoder_layers_11_self_attn_q_proj
    text_encoder encoder.layers.11.self_attn.q_proj
sdxl lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_out_0
    unet down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_out.0
sdxl lora_unet_input_blocks_3_0_op
    unet down_blocks.0.downsamplers.0.conv
sdxl lora_unet_input_blocks_4_0_skip_connection
    unet down_blocks.1.resnets.0.conv_shortcut
sdxl lora_unet_middle_block_1_transformer_blocks_9_ff_net_2
    unet mid_block.attentions.0.transformer_blocks.9.ff.net.2
sdxl lora_unet_middle_block_2_in_layers_2
    unet mid_block.resnets.1.conv1
sdxl lora_unet_output_blocks_5_2_conv
    unet up_blocks.1.upsamplers.0.conv
sdxl lora_unet_output_blocks_8_0_emb_layers_1
    unet up_blocks.2.resnets.2.time_emb_proj
sdxl lora_unet_time_embed_2
    unet time_embedding.linear_2
sdxl lora_unet_label_emb_0_0
    unet add_embedding.linear_1
sdxl lora_unet_out_2
    unet conv_out
sdxl lora_te1_text_model_encoder_layers_0_mlp_fc1
    text_encoder encoder.layers.0.mlp.fc1
sdxl lora_te2_text_model_encoder_layers_31_self_attn_out_proj
    text_encoder_2 text_model.encoder.layers.31.self_attn.out_proj
sdxl lora_te2_text_projection
    text_encoder_2 text_projection
sdxl text_encoder_2.text_model.encoder.layers.0.self_attn.to_v
    text_encoder_2 text_model.encoder.layers.0.self_attn.v_proj
sdxl down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out
    unet down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0
sdxl base_model.model.mid_block.attentions.0.proj_in
    unet mid_block.attentions.0.proj_in
"""


@cache
def modules(family: str) -> dict[str, nn.Module]:
    return {part.name: build_on_meta(part, BUNDLES / family) for part in parts_of(family)}


@cache
def table(family: str) -> dict[str, Target]:
    return targets(modules(family))


@pytest.mark.parametrize(
    ("family", "stem", "part", "module"),
    [NAMES.split()[first : first + 4] for first in range(0, len(NAMES.split()), 4)],
)
def test_a_real_name_means_its_weight(family: str, stem: str, part: str, module: str) -> None:
    target = table(family)[canonical(stem)]
    assert target == (part, f"{module}.weight")
    modules(family)[part].get_parameter(target.parameter)


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "sdxl-refiner", "ssd1b"])
def test_every_weight_that_is_trained_has_a_name(family: str) -> None:
    named = set(table(family).values())
    for part, module in modules(family).items():
        for name, weight in module.named_parameters():
            tables = "token_embedding" in name or "position_embedding" in name
            if part != "vae" and weight.ndim in (2, 4) and not tables:
                assert Target(part, name) in named, name


def test_diffusers_gives_every_original_name_of_sdxl_the_same_meaning() -> None:
    """Its own conversion of kohya's names; a tensor's value tells which name it came by."""
    originals = [
        (name, target)
        for name, target in table("sdxl").items()
        if name.startswith(("unet_input_blocks", "unet_middle_block", "unet_output_blocks"))
        and "_transformer_blocks_" in name
        and not name.endswith("to_out")
    ]
    assert len(originals) == 700
    weights = {
        f"lora_{name}.lora_{way}.weight": torch.tensor(float(number))
        for number, (name, _) in enumerate(originals)
        for way in ("down", "up")
    }
    in_blocks = lora_conversion_utils._maybe_map_sgm_blocks_to_diffusers(
        weights, modules("sdxl")["unet"].config
    )
    converted, _ = lora_conversion_utils._convert_non_diffusers_lora_to_diffusers(in_blocks)
    assert len(converted) == 1400
    for key, number in converted.items():
        stem = next(key.removesuffix(ending) for ending in ENDINGS if key.endswith(ending))
        assert table("sdxl")[canonical(stem)] == originals[int(number)][1], key

"""Text encoders as OpenCLIP names their weights, and as transformers does.

The names are those of OpenCLIP's ``Transformer`` and of transformers' ``CLIPTextModel``.
"""

from __future__ import annotations

from torch import Tensor

LAYER = "transformer.resblocks."
OUTSIDE = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
PROJECTION = "text_projection"


def translated(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Weights below ``prefix`` by transformers' names, without a copy of any.

    OpenCLIP keeps query, key and value of a layer as one weight, and its projection the other
    way round. What is no weight of the encoder is left out.
    """
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        own = name.removeprefix(prefix)
        if own == PROJECTION:
            found["text_projection.weight"] = weight.T
        elif own in OUTSIDE:
            found[f"text_model.{OUTSIDE[own]}"] = weight
        elif own.startswith(LAYER):
            found |= _in_layer(own.removeprefix(LAYER), weight)
    return found


def _in_layer(name: str, weight: Tensor) -> dict[str, Tensor]:
    number, _, rest = name.partition(".")
    layer = f"text_model.encoder.layers.{number}"
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        thirds = zip("qkv", weight.chunk(3), strict=True)
        return {f"{layer}.self_attn.{which}_proj.{kind}": third for which, third in thirds}
    module, _, kind = rest.rpartition(".")
    return {f"{layer}.{IN_LAYER[module]}.{kind}": weight} if module in IN_LAYER else {}

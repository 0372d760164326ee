"""Small random LoRA, embedding and preview files, in the formats that people have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import Tensor, nn

from tests import original_layout
from tests.checkpoints import LAYERS_PER_BLOCK

Dense = dict[tuple[str, str], Tensor]
"""(part, parameter) to what the network adds at strength 1, in float64."""

RANK = 2
KOHYA_PREFIXES = {"unet": "lora_unet_", "text_encoder_2": "lora_te2_"}
LORA_ENDINGS = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "sgm": (".lora_down.weight", ".lora_up.weight"),
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "processors": ("_lora.down.weight", "_lora.up.weight"),
}
NAMINGS = tuple(LORA_ENDINGS)


def make_lora(
    path: Path,
    modules: Mapping[str, nn.Module],
    *,
    naming: str = "kohya",
    kind: str = "lora",
    alpha: float | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    size: float = 0.3,
    keep: Callable[[str, str], bool] = lambda part, parameter: True,
    extras: Mapping[str, Tensor] | None = None,
    metadata: str | None = None,
) -> Dense:
    """Write a LoRA for all linear and convolution weights of UNet and text encoders.

    Args:
        path: of the file to write.
        modules: that it is for, by part, with transformers' or diffusers' own parameter names.
        naming: ``kohya``; ``sgm``, kohya's with the UNet blocks' original names; ``diffusers``;
            ``peft``, with alpha in the metadata; ``processors``, attention only, as early
            diffusers wrote it.
        kind: ``lora``, ``lora-mid``, ``loha``, ``loha-tucker``, ``lokr``, ``lokr-whole`` or
            ``lokr-tucker``; all but the first with kohya's names only.
        alpha: None leaves it out.
        size: of the factors.
        keep: which (part, parameter) to write.
        extras: more tensors of the file.
        metadata: peft's settings, instead of those for ``alpha``.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * size).to(dtype)

    originals = _original_names(modules["unet"]) if naming == "sgm" else {}
    dense: Dense = {}
    weights: dict[str, Tensor] = dict(extras or {})
    for part, parameter, weight in _weights(modules, naming, keep):
        name = originals.get(parameter, parameter) if part == "unet" else parameter
        stem = stem_of(part, name, naming)
        factors, product, rank = _FACTORS[kind](weight.shape, draw)
        endings = dict(zip(("down", "up"), LORA_ENDINGS[naming], strict=True))
        for name, factor in factors.items():
            weights[stem + endings.get(name, f".{name}")] = factor.contiguous()
        if alpha is not None and naming != "peft":
            weights[f"{stem}.alpha"] = torch.tensor(alpha)
        scale = 1.0 if alpha is None or rank is None else alpha / rank
        dense[part, parameter] = product.reshape(weight.shape) * scale
    if metadata is None and naming == "peft" and alpha is not None:
        metadata = json.dumps({f"{part}.lora_alpha": alpha for part in modules})
    save_file(weights, path, {"lora_adapter_metadata": metadata} if metadata else None)
    return dense


def stem_of(part: str, parameter: str, naming: str) -> str:
    """A parameter's key, without its ending."""
    name = parameter.removesuffix(".weight")
    if part != "unet" and name != "text_projection":
        name = f"text_model.{name.removeprefix('text_model.')}"
    if naming in ("kohya", "sgm"):
        first = "lora_te1_" if naming == "sgm" else "lora_te_"
        return KOHYA_PREFIXES.get(part, first) + name.replace(".", "_")
    if naming == "processors":
        head, _, last = name.replace(".to_out.0", ".to_out").rpartition(".")
        name = f"{head}.processor.{last}"
    return f"{part}.{name}"


def _original_names(unet: nn.Module) -> dict[str, str]:
    state = unet.state_dict()
    original = original_layout.unet(state, LAYERS_PER_BLOCK)
    return {
        ours: theirs.removeprefix("model.diffusion_model.")
        for ours, theirs in zip(state, original, strict=True)
    }


def _weights(
    modules: Mapping[str, nn.Module], naming: str, keep: Callable[[str, str], bool]
) -> Iterator[tuple[str, str, Tensor]]:
    for part, module in modules.items():
        if part == "vae":
            continue
        for path, inner in module.named_modules():
            parameter = f"{path}.weight"
            if not isinstance(inner, nn.Linear | nn.Conv2d) or not keep(part, parameter):
                continue
            if naming == "processors" and not (part == "unet" and ".to_" in path):
                continue
            yield part, parameter, inner.weight


Draw = Callable[..., Tensor]
Made = tuple[dict[str, Tensor], Tensor, int | None]
"""Factors by the end of their key, their product, and its rank."""


def _lora(shape: torch.Size, draw: Draw) -> Made:
    tail = [1] * (len(shape) - 2)
    down, up = draw(RANK, *shape[1:]), draw(shape[0], RANK, *tail)
    product = sum(
        torch.einsum("o,i->oi", up[:, r].flatten().double(), down[r].flatten().double())
        for r in range(RANK)
    )
    return {"down": down, "up": up}, product, RANK


def _lora_mid(shape: torch.Size, draw: Draw) -> Made:
    if len(shape) == 2:
        return _lora(shape, draw)
    down, up = draw(RANK, shape[1], 1, 1), draw(shape[0], RANK, 1, 1)
    mid = draw(RANK, RANK, *shape[2:])
    # What the three layers make of the unit pictures is the kernel they are together.
    product = torch.einsum(
        "or,rshw,si->oihw", up[..., 0, 0].double(), mid.double(), down[..., 0, 0].double()
    )
    return {"down": down, "up": up, "lora_mid.weight": mid}, product, RANK


def _loha(shape: torch.Size, draw: Draw) -> Made:
    inner = shape[1:].numel()
    factors = {
        f"hada_w{side}_{end}": draw(*([shape[0], RANK] if end == "a" else [RANK, inner]))
        for side in "12"
        for end in "ab"
    }
    wide = {name: factor.double() for name, factor in factors.items()}
    one, two = (wide[f"hada_w{side}_a"] @ wide[f"hada_w{side}_b"] for side in "12")
    return factors, one * two, RANK


def _loha_tucker(shape: torch.Size, draw: Draw) -> Made:
    if len(shape) == 2:
        return _loha(shape, draw)
    factors: dict[str, Tensor] = {}
    product = torch.ones(shape, dtype=torch.float64)
    for side in "12":
        a, b, core = draw(RANK, shape[0]), draw(RANK, shape[1]), draw(RANK, RANK, *shape[2:])
        factors |= {f"hada_w{side}_a": a, f"hada_w{side}_b": b, f"hada_t{side}": core}
        product *= _tucker(core, a, b)
    return factors, product, RANK


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Sum over both ranks, one term at a time."""
    total = torch.zeros(a.shape[1], b.shape[1], *core.shape[2:], dtype=torch.float64)
    for i in range(core.shape[0]):
        for j in range(core.shape[1]):
            outer = torch.outer(a[i].double(), b[j].double())
            total += outer[:, :, None, None] * core[i, j].double()
    return total


def _blocks(left: Tensor, right: Tensor) -> Tensor:
    """The Kronecker product of the first two axes, one block at a time."""
    rows = [
        torch.cat([left[i, j].double() * right.double() for j in range(left.shape[1])], dim=1)
        for i in range(left.shape[0])
    ]
    return torch.cat(rows)


def _lokr(shape: torch.Size, draw: Draw) -> Made:
    small = (2, 2) if shape[0] % 2 == shape[1] % 2 == 0 else (1, 1)
    out, inner = shape[0] // small[0], shape[1] // small[1]
    left = draw(*small)
    a, b = draw(out, RANK), draw(RANK, inner * shape[2:].numel())
    right = (a.double() @ b.double()).reshape(out, inner, *shape[2:])
    factors = {"lokr_w1": left, "lokr_w2_a": a, "lokr_w2_b": b}
    return factors, _blocks(left, right), RANK


def _lokr_whole(shape: torch.Size, draw: Draw) -> Made:
    small = (2, 2) if shape[0] % 2 == shape[1] % 2 == 0 else (1, 1)
    left, right = draw(*small), draw(shape[0] // small[0], shape[1] // small[1], *shape[2:])
    return {"lokr_w1": left, "lokr_w2": right}, _blocks(left, right), None


def _lokr_tucker(shape: torch.Size, draw: Draw) -> Made:
    if len(shape) == 2:
        return _lokr(shape, draw)
    left_a, left_b = draw(1, RANK), draw(RANK, 1)
    core, a, b = draw(RANK, RANK, *shape[2:]), draw(RANK, shape[0]), draw(RANK, shape[1])
    factors = {
        "lokr_w1_a": left_a,
        "lokr_w1_b": left_b,
        "lokr_t2": core,
        "lokr_w2_a": a,
        "lokr_w2_b": b,
    }
    return factors, _blocks(left_a.double() @ left_b.double(), _tucker(core, a, b)), RANK


_FACTORS: dict[str, Callable[[torch.Size, Draw], Made]] = {
    "lora": _lora,
    "lora-mid": _lora_mid,
    "loha": _loha,
    "loha-tucker": _loha_tucker,
    "lokr": _lokr,
    "lokr-whole": _lokr_whole,
    "lokr-tucker": _lokr_tucker,
}
KINDS = tuple(_FACTORS)


def make_embedding(
    path: Path, layout: str, widths: tuple[int, ...], count: int = 2
) -> list[Tensor]:
    """Write an embedding of ``count`` vectors for each width.

    Args:
        layout: ``webui`` or ``diffusers``; for two widths both are SDXL's. The path's suffix
            says whether it is a pickle.
    """
    generator = torch.Generator().manual_seed(len(path.name) + count)
    tables = [torch.randn(count, width, generator=generator) * 0.3 for width in widths]
    content: dict[str, Tensor]
    if len(tables) == 2:
        content = dict(zip(("clip_l", "clip_g"), tables, strict=True))
    elif path.suffix == ".safetensors":
        content = {"emb_params" if layout == "webui" else "<the-word>": tables[0]}
    else:
        content = {"*" if layout == "webui" else "<the-word>": tables[0]}
    if path.suffix == ".safetensors":
        save_file(content, path)
    elif layout == "webui" and len(tables) == 1:
        parameters = {name: nn.Parameter(table) for name, table in content.items()}
        others = {
            "string_to_token": {"*": 265},
            "name": path.stem,
            "step": 10,
            "sd_checkpoint": None,
        }
        torch.save({**others, "string_to_param": parameters}, path)
    else:
        torch.save(content, path)
    return tables


def make_tiny_decoder(path: Path, layout: str, *, width: int = 8, seed: int = 0) -> nn.Module:
    """Write a random TAESD, and return diffusers' own model of it.

    Args:
        layout: ``original``, the decoder alone by its original names, or ``diffusers``, both
            halves by diffusers'.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sides = (width,) * 4
        model = AutoencoderTiny(encoder_block_out_channels=sides, decoder_block_out_channels=sides)
    weights = model.state_dict()
    if layout == "original":
        # There the decoder begins with a clamp, which diffusers counts as no layer.
        numbers = {f"decoder.layers.{number}.": f"{number + 1}." for number in range(30)}
        weights = {
            numbers[place] + name.removeprefix(place): weight
            for name, weight in weights.items()
            for place in numbers
            if name.startswith(place)
        }
    save_file(weights, path)
    return model.eval()

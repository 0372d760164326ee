"""LoRA files: what is in one, and which weights of a checkpoint it is meant for."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from farm.errors import CheckpointError, LoraError
from farm.worker.models.deltas import Delta
from farm.worker.models.header import Header, read_header
from farm.worker.models.kinds import LORA
from farm.worker.models.lora_names import MODEL_PREFIXES, Target, canonical
from farm.worker.models.reader import DTYPES, check_unchanged, read_tensors

log = logging.getLogger(__name__)

SHOWN_KEYS = 4
ALPHA = ".alpha"
ADAPTER_METADATA = "lora_adapter_metadata"
UNKNOWN_SETTINGS = ("alpha_pattern", "use_rslora", "use_dora", "lora_bias")

ENDINGS = {
    ".lora_down.weight": ("lora", "down"),
    ".lora_up.weight": ("lora", "up"),
    ".lora_mid.weight": ("lora", "mid"),
    ".lora.down.weight": ("lora", "down"),
    ".lora.up.weight": ("lora", "up"),
    "_lora.down.weight": ("lora", "down"),
    "_lora.up.weight": ("lora", "up"),
    ".lora_linear_layer.down.weight": ("lora", "down"),
    ".lora_linear_layer.up.weight": ("lora", "up"),
    ".lora_A.weight": ("lora", "down"),
    ".lora_B.weight": ("lora", "up"),
    ".lora_A.default.weight": ("lora", "down"),
    ".lora_B.default.weight": ("lora", "up"),
    **{f".hada_{factor}": ("loha", factor) for factor in ("w1_a", "w1_b", "w2_a", "w2_b")},
    **{f".hada_{factor}": ("loha", factor) for factor in ("t1", "t2")},
    **{f".lokr_{factor}": ("lokr", factor) for factor in ("w1", "w1_a", "w1_b")},
    **{f".lokr_{factor}": ("lokr", factor) for factor in ("w2", "w2_a", "w2_b", "t2")},
}
"""Of a key: the kind of network, and the factor's name in its formula."""

REFUSED = {
    ".dora_scale": "a DoRA",
    ".lora_magnitude_vector": "a DoRA",
    ".lora_magnitude_vector.weight": "a DoRA",
    ".diff": "whole weights",
    ".diff_b": "biases",
    ".lora_B.bias": "biases",
    ".lora.up.bias": "biases",
    ".oft_blocks": "an OFT network",
    ".oft_diag": "an OFT network",
    ".on_input": "an IA3 network",
    ".w_norm": "norms",
}
"""Kinds that are more than something added to a weight, or that nobody here has tried."""

CONTEXT_WIDTHS = {768: "SD1", 1024: "SD2", 1280: "the SDXL refiner", 2048: "SDXL"}
"""What a UNet's cross-attention reads tells its family; used in messages only."""


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA in host memory, equal only to itself.

    Attributes:
        deltas: by the key as the file has it, without its ending.
    """

    name: str
    path: Path
    deltas: Mapping[str, Delta]

    @property
    def bytes(self) -> int:
        """Memory of all factors."""
        return sum(delta.bytes for delta in self.deltas.values())


def read_lora(name: str, path: Path) -> LoraFile:
    """Read a LoRA, LoHa or LoKr file.

    Raises:
        CheckpointError: damaged, no network, a network of an unknown kind, or NaN in it.
    """
    try:
        header = read_header(path)
        tensors = _tensors(header)
        check_unchanged(header)
    except CheckpointError as error:
        raise refused(name, f"cannot be read: {error.message}", error.remedy) from error
    grouped = _grouped(name, header)
    alphas = _adapter_alphas(name, header)
    deltas = {}
    for stem, keys in grouped.items():
        parts = {_ending(key): tensors[key] for key in keys}
        alpha = parts.pop(ALPHA, None)
        kinds = {ENDINGS[ending][0] for ending in parts}
        if len(kinds) != 1 or (alpha is not None and alpha.numel() != 1):
            raise refused(name, f"has a broken entry {stem!r}", "Get it again.")
        factors = {ENDINGS[ending][1]: factor for ending, factor in parts.items()}
        value = alphas.get(_part(stem)) if alpha is None else alpha.item()
        deltas[stem] = Delta(kinds.pop(), factors, value)
    return LoraFile(name, path, deltas)


def matched(
    lora: LoraFile, modules: Mapping[str, nn.Module], table: Mapping[str, Target], *, family: str
) -> dict[Target, Delta]:
    """What each weight of a checkpoint gets.

    Keys that no weight answers to are left out and logged, unless they are the most.

    Args:
        modules: of the checkpoint, by part.
        table: see :func:`farm.worker.models.lora_names.targets`.
        family: of the checkpoint, for messages.

    Raises:
        CheckpointError: the LoRA is for another family: a weight of another shape, or more keys
            without a weight than with one.
    """
    found: dict[Target, Delta] = {}
    unknown = []
    for stem, delta in lora.deltas.items():
        target = table.get(canonical(stem))
        if target is None:
            unknown.append(stem)
            continue
        shape = modules[target.part].get_parameter(target.parameter).shape
        if target in found:
            raise refused(lora.name, f"has two entries for one weight, {stem!r}", "Get it again.")
        if not delta.fits(shape):
            sides = "x".join(map(str, shape))
            raise _for_another(lora, family, f"{stem!r} does not fit a weight of {sides}")
        found[target] = delta
    if len(unknown) > len(found):
        counts = f"{len(unknown)} of its {len(lora.deltas)} keys"
        raise _for_another(lora, family, f"{counts} mean no weight of it, the first {unknown[0]!r}")
    _warn(lora.name, f"fit nothing in this {family} checkpoint", unknown)
    return found


def refused(name: str, what: str, remedy: str | None) -> LoraError:
    """The error ``The LoRA <name> <what>``."""
    message = f"The LoRA {name!r} {what.removesuffix('.')}."
    return LoraError(message, field=LORA, value=name, remedy=remedy)


def _for_another(lora: LoraFile, family: str, why: str) -> LoraError:
    made = _trained_for(lora)
    return refused(
        lora.name,
        f"does not fit this {family} checkpoint: {why}",
        f"It was made for {made}: use it with such a checkpoint."
        if made
        else "Use it with a checkpoint of the family it was made for.",
    )


def _trained_for(lora: LoraFile) -> str | None:
    names = {canonical(stem): delta for stem, delta in lora.deltas.items()}
    if any(name.startswith(MODEL_PREFIXES["text_encoder_2"]) for name in names):
        return "SDXL"
    for name, delta in names.items():
        if name.endswith("attn2_to_k") and "down" in delta.factors:
            return CONTEXT_WIDTHS.get(delta.factors["down"].shape[1])
    return None


def _grouped(name: str, header: Header) -> dict[str, list[str]]:
    """Keys by stem."""
    grouped: dict[str, list[str]] = defaultdict(list)
    strange = []
    for key in header.tensors:
        what = next((what for ending, what in REFUSED.items() if key.endswith(ending)), None)
        if what:
            holds = f"holds {what} ({key!r}), which Farm cannot apply"
            raise refused(name, holds, "Use a LoRA, LoHa or LoKr.")
        if ending := _ending(key):
            grouped[key.removesuffix(ending)].append(key)
        else:
            strange.append(key)
    if not grouped:
        raise refused(name, "is no LoRA: none of its keys belongs to one", "Use another file.")
    _warn(name, "are of no known kind", strange)
    return grouped


def _warn(name: str, what: str, keys: Sequence[str]) -> None:
    if keys:
        shown = ", ".join(keys[:SHOWN_KEYS])
        log.warning("LoRA %s: %d keys %s and are left out: %s", name, len(keys), what, shown)


def _ending(key: str) -> str:
    return next((ending for ending in (ALPHA, *ENDINGS) if key.endswith(ending)), "")


def _tensors(header: Header) -> dict[str, Tensor]:
    """All tensors of the file as they are stored, or else in float32."""
    kinds: dict[torch.dtype, list[str]] = defaultdict(list)
    for key, entry in header.tensors.items():
        dtype = DTYPES[entry.dtype]
        kinds[dtype if dtype in (torch.float16, torch.bfloat16) else torch.float32].append(key)
    found: dict[str, Tensor] = {}
    for dtype, keys in kinds.items():
        found |= read_tensors(header, keys, dtype=dtype, device=torch.device("cpu"))
    return found


def _part(stem: str) -> str:
    """The model that a key in diffusers' names is for."""
    return stem.partition(".")[0]


def _adapter_alphas(name: str, header: Header) -> Mapping[str, float]:
    """diffusers keeps peft's settings, alpha among them, in the metadata, one set a model."""
    try:
        settings: Any = json.loads(header.metadata.get(ADAPTER_METADATA, "{}"))
        given = {part: settings.get(f"{part}.lora_alpha") for part in MODEL_PREFIXES}
        alphas = {part: float(alpha) for part, alpha in given.items() if alpha is not None}
        special = _special(settings)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise refused(name, f"has broken metadata: {error}", "Get it again.") from error
    if special:
        raise refused(name, f"asks for {special}, which Farm has not", "Train it without.")
    return alphas


def _special(settings: Mapping[str, Any]) -> str | None:
    """A setting that changes the formula."""
    asked = (key for key, value in settings.items() if value)
    return next((f"{key!r}" for key in asked if key.split(".")[-1] in UNKNOWN_SETTINGS), None)

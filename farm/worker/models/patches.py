"""LoRAs on the weights of a checkpoint, put on and taken off without a trace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from farm.spec.networks import Loras
from farm.worker.models.deltas import Delta
from farm.worker.models.lora import LoraFile, matched
from farm.worker.models.lora_names import MODEL_PREFIXES, Target, targets

Additions: TypeAlias = Sequence[tuple[float, Delta]]
Side: TypeAlias = Literal["text", "unet"]
SIDES: tuple[Side, ...] = ("text", "unet")


class Patch:
    """What is added to the weights of one module, in place.

    A weight that something is added to is kept as it was; whatever is added, it is computed from
    that in float32 and rounded once. So a set is the same whatever was on before it, and taking
    it off leaves the very bits that were loaded.

    Attributes:
        worn: the LoRAs whose additions are on it.
        kept_bytes: memory, of the device that the weights are on, that kept ones take beside
            them. A plain number, so that other threads may read it while weights change.
    """

    def __init__(self, module: nn.Module) -> None:
        self._weights = dict(module.named_parameters())
        self._kept: dict[str, Tensor] = {}
        self.worn: Loras = ()
        self.kept_bytes = 0

    def put(self, loras: Loras, additions: Mapping[str, Additions], *, spare: int) -> None:
        """Have these additions, by parameter, on the module and no others.

        Args:
            spare: bytes of the module's device that are free for kept weights; those for which
                there is no room go to host memory.

        Raises:
            Exception: whatever the device raises; then nothing is on the module.
        """
        room = spare + self.kept_bytes
        try:
            for name in [name for name in self._kept if name not in additions]:
                self._restore(name)
            for name, parts in additions.items():
                weight = self._weights[name]
                if name not in self._kept:
                    self._keep(name, room - self.kept_bytes)
                total = self._kept[name].to(weight.device, torch.float32)
                for strength, delta in parts:
                    total = total + strength * delta.full(weight.shape, weight.device)
                weight.copy_(total)
        except BaseException:
            self.clear()
            raise
        self.worn = loras

    def follow(self) -> None:
        """The weights have moved: kept ones live where they do."""
        for name, kept in self._kept.items():
            self._kept[name] = kept.to(self._weights[name].device)
        self.kept_bytes = sum(kept.nbytes for kept in self._kept.values())

    @torch.no_grad()
    def clear(self) -> None:
        """Take everything off."""
        for name in list(self._kept):
            self._restore(name)
        self.worn = ()

    def _keep(self, name: str, spare: int) -> None:
        weight = self._weights[name].detach()
        here = weight.device.type == "cpu" or weight.nbytes <= spare
        self._kept[name] = weight.clone() if here else weight.cpu()
        self.kept_bytes += weight.nbytes if here else 0

    def _restore(self, name: str) -> None:
        weight, kept = self._weights[name], self._kept[name]
        weight.copy_(kept)
        del self._kept[name]
        self.kept_bytes -= kept.nbytes if kept.device == weight.device else 0


# Checkpoints may share a module, so what is on it is known by the module itself.
_PATCHES: WeakKeyDictionary[nn.Module, Patch] = WeakKeyDictionary()


def patch_of(module: nn.Module) -> Patch:
    """What is on this module."""
    if module not in _PATCHES:
        _PATCHES[module] = Patch(module)
    return _PATCHES[module]


class Patches:
    """The LoRAs of one checkpoint.

    Args:
        modules: the checkpoint's, by part.
        family: the checkpoint's, for messages.
    """

    def __init__(self, modules: Mapping[str, nn.Module], family: str) -> None:
        self._family = family
        self._matches: WeakKeyDictionary[LoraFile, dict[Target, Delta]] = WeakKeyDictionary()
        self._modules = {part: modules[part] for part in modules if part in MODEL_PREFIXES}
        self._patches = {part: patch_of(module) for part, module in self._modules.items()}

    def worn(self, side: Side) -> Loras | None:
        """The LoRAs on that side; None where its modules do not wear the same."""
        sets = {patch.worn for patch in self._of(side).values()}
        return sets.pop() if len(sets) == 1 else None

    @torch.no_grad()
    def wear(
        self, side: Side, loras: Loras, find: Callable[[str], LoraFile], *, spare: int
    ) -> None:
        """Have these LoRAs, and no others, on one side: the text encoders or the UNet.

        Args:
            find: a LoRA's file by its name.
            spare: bytes of device memory that are free for weights as they were.

        Raises:
            CheckpointError: a LoRA that does not exist or does not fit; nothing has changed.
        """
        patches = self._of(side)
        additions: dict[str, dict[str, list[tuple[float, Delta]]]] = {
            part: defaultdict(list) for part in patches
        }
        for lora in loras:
            for target, delta in self._matched(find(lora.name)).items():
                if target.part in additions:
                    additions[target.part][target.parameter].append((lora.strength, delta))
        for part, patch in patches.items():
            before = patch.kept_bytes
            patch.put(loras, additions[part], spare=spare)
            spare += before - patch.kept_bytes

    def _of(self, side: Side) -> dict[str, Patch]:
        return {
            part: patch
            for part, patch in self._patches.items()
            if (part == "unet") == (side == "unet")
        }

    def _matched(self, file: LoraFile) -> Mapping[Target, Delta]:
        if file not in self._matches:
            found = matched(file, self._modules, self._targets, family=self._family)
            self._matches[file] = found
        return self._matches[file]

    @cached_property
    def _targets(self) -> Mapping[str, Target]:
        return targets(self._modules)

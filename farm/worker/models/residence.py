"""Where the weights of a checkpoint's models are: on its device, in host memory, or passing."""

from __future__ import annotations

from collections.abc import Container, Mapping
from time import monotonic
from typing import Any

import torch
from torch import nn

from farm.worker.memory.profiles import MemoryProfile
from farm.worker.models import attention, channels
from farm.worker.models.offload import Streamed, streamed
from farm.worker.models.patches import patch_of

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")


class Residence:
    """The models of one checkpoint, some of which others may hold too.

    Text encoders that were loaded into host memory stay there, and are streamed.

    Args:
        modules: by part, where they were loaded to.
        device: where they compute.
        streams: whether the UNet and the text encoders stay in host memory.

    Attributes:
        homes: where each model is while the checkpoint is in use.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], device: torch.device, *, streams: bool
    ) -> None:
        self._device = device
        self._streams = streams
        # Of a model that another checkpoint has streamed it may never be asked.
        self._asked = monotonic()
        self._unet = modules["unet"]
        texts = [modules[part] for part in TEXT_ENCODERS if part in modules]
        for module in [*texts, self._unet] if streams else texts:
            if streams or next(module.parameters()).device.type != device.type:
                _stream(module, device)
        self.homes = {module: next(module.parameters()).device for module in modules.values()}

    @property
    def weights(self) -> Mapping[nn.Module, int]:
        """The models, and the bytes of each, wherever they are."""
        return {
            module: sum(weight.nbytes for weight in module.parameters()) for module in self.homes
        }

    @property
    def held(self) -> Mapping[nn.Module, int]:
        """See :attr:`farm.worker.models.checkpoint.Checkpoint.held`."""
        held = {}
        for module, weights in self.weights.items():
            stream = streamed(module)
            # By type: a tensor on "cuda" says that it is on "cuda:0".
            if stream is None and self.homes[module].type == self._device.type:
                held[module] = weights + patch_of(module).kept_bytes
            elif stream is not None and module is self._unet:
                held[module] = stream.window_bytes
        return held

    @property
    def streams(self) -> bool:
        """Whether the UNet's weights pass through the device."""
        return streamed(self._unet) is not None

    @property
    def squeezed(self) -> bool:
        """Whether they do only because memory ran out."""
        return self.streams and not self._streams

    @property
    def squeezed_seconds(self) -> float:
        """For how long nobody has needed that they do; 0 where they do not, or always did."""
        return monotonic() - self._asked if self.squeezed else 0.0

    @property
    def may_stream(self) -> bool:
        """Whether :meth:`stream` would make room."""
        return self.homes[self._unet].type != "cpu"

    def stream(self) -> None:
        """Have the UNet's weights leave the device, and pass through it in each forward; or say
        that this is needed once more."""
        self._asked = monotonic()
        if not self.may_stream:
            return
        _stream(self._unet, self._device)
        patch_of(self._unet).follow()
        self.homes[self._unet] = torch.device("cpu")

    def to_host(self, needed: Container[nn.Module]) -> None:
        """Move the weights to host memory, but for models ``needed`` by other checkpoints."""
        for module in self.homes:
            if module not in needed:
                _settle(module)
                patch_of(module).clear()
                nn.Module.to(module, "cpu")

    def to_device(self) -> None:
        """Move every model back to where it was loaded."""
        for module, home in self.homes.items():
            if streamed(module) is None:
                nn.Module.to(module, home)

    def settle(self) -> None:
        """Before weights change that a copy may be reading."""
        for module in self.homes:
            _settle(module)


def lay_out(modules: Mapping[str, nn.Module], profile: MemoryProfile) -> None:
    """Attention and convolutions as the profile says. Of text encoders there is nothing to choose:
    77 tokens have no scores to speak of."""
    for part in ("unet", "vae"):
        model: Any = modules[part]
        attention.lay(model, profile.attention)
        if not profile.channels_last:
            nn.Module.to(model, memory_format=torch.contiguous_format)
    if profile.channels_last:
        channels.keep_last(modules["unet"])


def _stream(module: nn.Module, device: torch.device) -> None:
    """Checkpoints may share a model, so it may be streamed already."""
    if streamed(module) is None:
        Streamed(module, device)


def _settle(module: nn.Module) -> None:
    if stream := streamed(module):
        stream.settle()
        stream.rest()

"""Weights that wait in host memory and come to the device unit by unit, just ahead of use.

Like webui's ``--lowvram``, but the next unit is copied while the last one computes. A unit is a
module of at most 128 MiB, a transformer block or a residual block of SDXL. Two buffers on the
device take turns, so the memory that streaming takes is fixed: the host runs ahead of a GPU, and
with memory of its own for every copy it would fill the card with copies that are not used yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from weakref import proxy

import torch
from torch import Tensor, nn

UNIT_BYTES = 128 * 2**20
CHUNK = 2**30
"""Torch rounds pinned memory up to a power of two, so weights share pieces of this size."""
ALIGNED = 256
_NAME = "_streamed"


@dataclass(eq=False)
class _Unit:
    """A module that is on the device as a whole, or not at all.

    Attributes:
        host: [n] uint8, all its weights one after the other.
        at_home: the weights as views of ``host``.
    """

    module: nn.Module
    weights: Sequence[nn.Parameter]
    host: Tensor
    at_home: list[Tensor] = field(default_factory=list)

    def settle(self) -> None:
        """Move the weights into ``host``."""
        self.at_home = _views(self.host, self.weights)
        for weight, home in zip(self.weights, self.at_home, strict=True):
            home.copy_(weight.data)
            weight.data = home


class _Buffer:
    """Room on the device for one unit."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.unit: _Unit | None = None
        self._data = torch.empty(size, dtype=torch.uint8, device=device)
        self._views: dict[_Unit, list[Tensor]] = {}
        if device.type == "cuda":
            self._copied, self._free = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
            self.released()

    def fetch(self, unit: _Unit, side: torch.cuda.Stream | None) -> None:
        """Copy a unit's weights here, once what computes with the last ones has ended."""
        self.unit = unit
        target = self._data[: len(unit.host)]
        if side is None:
            target.copy_(unit.host)
            return
        with torch.cuda.stream(side):
            side.wait_event(self._free)
            target.copy_(unit.host, non_blocking=True)
            self._copied.record(side)

    def weights(self, unit: _Unit) -> list[Tensor]:
        """The unit's weights here; what is queued from now on waits for their copy."""
        self.wait()
        if unit not in self._views:
            self._views[unit] = _views(self._data, unit.weights)
        return self._views[unit]

    def wait(self) -> None:
        """Have what is queued from now on wait for the copy under way."""
        if self._data.device.type == "cuda":
            torch.cuda.current_stream(self._data.device).wait_event(self._copied)

    def released(self) -> None:
        """What is queued so far is all that computes with the weights here."""
        if self._data.device.type == "cuda":
            self._free.record(torch.cuda.current_stream(self._data.device))


class Streamed:
    """A model whose weights live in host memory, pinned where the device is a GPU.

    Between its forwards every parameter is the one in host memory, so that LoRAs are put on and
    taken off there; :meth:`settle` first. Computing is bit for bit what it is with weights that
    stay on the device.

    Args:
        module: on the host or on ``device``; its weights move.
        device: where it computes.
        unit_bytes: most weights that are copied together.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, *, unit_bytes: int = UNIT_BYTES
    ) -> None:
        self._device = device
        itemsize = next(module.parameters()).itemsize
        found = list(_divided(module, unit_bytes // itemsize))
        self._units = _homed(found, pinned=device.type == "cuda")
        self._following: dict[_Unit, _Unit] = {}
        self._last: _Unit | None = None
        self._buffers: list[_Buffer] = []
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Hooks that held this would make a circle, and memory would wait for the collector.
        me = proxy(self)
        for number, unit in enumerate(self._units):
            unit.settle()
            unit.module.register_forward_pre_hook(lambda *_, number=number: me._enter(number))
            unit.module.register_forward_hook(
                lambda *_, number=number: me._leave(number), always_call=True
            )
        module.register_forward_pre_hook(lambda root, _: me._begin(root), prepend=True)
        setattr(module, _NAME, self)

    @property
    def window_bytes(self) -> int:
        """Device memory that weights take while the model is in use."""
        return 2 * max(len(unit.host) for unit in self._units)

    @property
    def here(self) -> list[nn.Module]:
        """The units that are on the device now."""
        return [buffer.unit.module for buffer in self._buffers if buffer.unit]

    def settle(self) -> None:
        """Wait until nothing reads the host's weights any more."""
        if self._side:
            self._side.synchronize()

    def rest(self) -> None:
        """Give the device's memory back until the next forward."""
        for buffer in self._buffers:
            buffer.wait()
        self._buffers.clear()

    def _begin(self, root: nn.Module) -> None:
        """Before a forward: weights may have changed since the last one."""
        if not self._buffers:
            size = self.window_bytes // 2
            self._buffers = [_Buffer(size, self._device) for _ in range(2)]
        for buffer in self._buffers:
            buffer.unit = None
        self._last = None
        for owner, name, tensor in _strays(root, self._device):
            owner.register_buffer(name, tensor.to(self._device), persistent=False)

    def _enter(self, number: int) -> None:
        unit = self._units[number]
        if self._last:
            self._following[self._last] = unit
        self._last = unit
        here, other = self._buffers if self._buffers[0].unit is unit else self._buffers[::-1]
        if here.unit is not unit:
            here.fetch(unit, self._side)
        for weight, moved in zip(unit.weights, here.weights(unit), strict=True):
            weight.data = moved
        following = self._following.get(unit)
        if following and following is not unit:
            other.fetch(following, self._side)

    def _leave(self, number: int) -> None:
        unit = self._units[number]
        for weight, home in zip(unit.weights, unit.at_home, strict=True):
            weight.data = home
        for buffer in self._buffers:
            if buffer.unit is unit:
                buffer.released()


def streamed(module: nn.Module) -> Streamed | None:
    """What streams this model's weights, if they are."""
    return module.__dict__.get(_NAME)


def window_bytes(module: nn.Module, itemsize: int, *, unit_bytes: int = UNIT_BYTES) -> int:
    """Device memory that a model takes when its weights are streamed; it may be on ``meta``.

    Args:
        itemsize: bytes of a weight.
    """
    units = _divided(module, unit_bytes // itemsize)
    return 2 * max(
        sum(_aligned(weight.numel() * itemsize) for weight in unit.parameters()) for unit in units
    )


def _divided(module: nn.Module, most: int) -> Iterator[nn.Module]:
    """The largest modules of at most ``most`` weights that together hold all weights.

    A list of modules is never called, so it is no unit; weights of a module's own are never
    parted from those of its children.
    """
    size = sum(weight.numel() for weight in module.parameters())
    own = any(True for _ in module.parameters(recurse=False))
    called = type(module).forward is not nn.Module.forward
    if size and called and (own or size <= most):
        yield module
    elif size:
        for child in module.children():
            yield from _divided(child, most)


def _homed(modules: Sequence[nn.Module], *, pinned: bool) -> list[_Unit]:
    """Units with room in host memory."""
    sizes = [_size(list(module.parameters())) for module in modules]
    units: list[_Unit] = []
    chunk, left = torch.empty(0, dtype=torch.uint8), sum(sizes)
    for module, size in zip(modules, sizes, strict=True):
        if size > len(chunk):
            chunk = torch.empty(max(size, min(left, CHUNK)), dtype=torch.uint8, pin_memory=pinned)
        units.append(_Unit(module, list(module.parameters()), chunk[:size]))
        chunk, left = chunk[size:], left - size
    return units


def _views(memory: Tensor, weights: Sequence[nn.Parameter]) -> list[Tensor]:
    """Room for each weight in ``memory``, one after the other, laid out as the weight is."""
    views, start = [], 0
    for weight in weights:
        room = memory[start : start + weight.nbytes].view(weight.dtype)
        views.append(room.as_strided(weight.shape, weight.stride()))
        start += _aligned(weight.nbytes)
    return views


def _strays(module: nn.Module, device: torch.device) -> list[tuple[nn.Module, str, Tensor]]:
    """What is no weight and not on the device: positions of CLIP."""
    return [
        (owner, name, tensor)
        for owner in module.modules()
        for name, tensor in owner._buffers.items()
        if tensor is not None and tensor.device.type != device.type
    ]


def _size(weights: Sequence[nn.Parameter]) -> int:
    return sum(_aligned(weight.nbytes) for weight in weights)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED

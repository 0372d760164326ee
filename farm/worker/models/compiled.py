"""The blocks that a UNet repeats, compiled in the background.

Only the transformer blocks are compiled, one for all that are alike ("regional compilation",
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html): seconds instead of minutes,
and most of what there is to gain. Torch keeps what was compiled in the folder that
``TORCHINDUCTOR_CACHE_DIR`` names, for lives to come.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from farm.worker.models.workbench import WORKBENCH

log = logging.getLogger(__name__)

SHAPES = 64
"""Shapes of input that a block is compiled for; any more run uncompiled."""


@dataclass(frozen=True)
class _Like:
    """What a tensor looked like."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def made(self) -> Tensor:
        """Zeros of that look: a compiled block is good for the very strides it was made with."""
        return torch.empty_strided(
            self.shape, self.stride, dtype=self.dtype, device=self.device
        ).zero_()


@dataclass(frozen=True)
class _Use:
    """How a block was called in a forward: its place, and its arguments without their numbers."""

    place: int
    arguments: Any


class CompiledBlocks:
    """Calls of a UNet with its repeated blocks compiled, where they are ready for a shape.

    The first forward of a shape runs as it is, and shows what the blocks are called with. A thread
    then compiles them on inputs of zeros, one shape at a time, and they are used from then on.
    What cannot be compiled runs as it is for ever, and the log says why. Weights are inputs of
    what is compiled: they may change in place, as LoRAs change them.

    The thread works on twins of the blocks, which have the same weights and nothing else in common
    with them: whatever the engine does to the blocks meanwhile, as when it computes in another
    precision, does not get into what is compiled.

    Call it from one thread at a time.

    Args:
        unet: a model of diffusers that names its ``_repeated_blocks``.
        backend: of ``torch.compile``.
    """

    def __init__(self, unet: Any, *, backend: str = "inductor") -> None:
        self._options = {
            "fullgraph": True,
            "dynamic": False,
            "backend": backend,
            "recompile_limit": SHAPES,
        }
        unet.compile_repeated_blocks(**self._options)
        names = set(unet._repeated_blocks)
        self._blocks = [block for block in unet.modules() if type(block).__name__ in names]
        self._calls: list[Callable[..., Any]] = [
            block._compiled_call_impl for block in self._blocks
        ]
        self._switch(on=False)
        self._seen: set[Hashable] = set()
        self._ready: set[Hashable] = set()
        self._thread: threading.Thread | None = None

    def ready(self, shape: Hashable) -> bool:
        """Whether the blocks are compiled for forwards of this shape."""
        return shape in self._ready

    @property
    def busy(self) -> bool:
        """Whether anything is being compiled."""
        return self._thread is not None

    @contextmanager
    def used(self, shape: Hashable) -> Iterator[None]:
        """In the block the UNet is called with inputs of this shape."""
        self._switch(on=self.ready(shape))
        if shape in self._seen or self.busy:
            yield
            return
        with self._watched() as uses:
            yield
        self._seen.add(shape)
        work = [(_twin(self._blocks[use.place]), use) for use in _distinct(self._blocks, uses)]
        self._thread = threading.Thread(
            target=self._run, args=(shape, work), name="compile", daemon=True
        )
        self._thread.start()

    def unused(self) -> None:
        """The UNet is called as it is, until :meth:`used` again."""
        self._switch(on=False)

    def wait(self) -> None:
        """Wait until all that was begun is compiled."""
        if thread := self._thread:
            thread.join()

    def _switch(self, *, on: bool) -> None:
        # Checkpoints may share a UNet, so how it stands is read from itself.
        if (self._blocks[0]._compiled_call_impl is not None) != on:
            for block, call in zip(self._blocks, self._calls, strict=True):
                block._compiled_call_impl = call if on else None

    @contextmanager
    def _watched(self) -> Iterator[list[_Use]]:
        """In the block calls of blocks are noted."""
        uses: list[_Use] = []

        def note(place: int) -> Callable[..., None]:
            def noted(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                uses.append(_Use(place, trees.tree_map_only(Tensor, _look, (args, kwargs))))

            return noted

        hooks = [
            block.register_forward_pre_hook(note(place), with_kwargs=True)
            for place, block in enumerate(self._blocks)
        ]
        try:
            yield uses
        finally:
            for hook in hooks:
                hook.remove()

    def _run(self, shape: Hashable, work: Sequence[tuple[nn.Module, _Use]]) -> None:
        try:
            with torch.no_grad():
                for twin, use in work:
                    args, kwargs = trees.tree_map_only(_Like, _Like.made, use.arguments)
                    twin.compile(**self._options)
                    with WORKBENCH:
                        twin(*args, **kwargs)
        except Exception as error:
            log.warning("forwards of %s stay uncompiled: %r", shape, error)
        else:
            self._ready.add(shape)
        finally:
            self._thread = None


def _twin(block: nn.Module) -> nn.Module:
    """A block on the same weights, by parameters of its own."""
    twins: dict[int, object] = {
        id(weight): nn.Parameter(weight.data, weight.requires_grad) for weight in block.parameters()
    }
    twins |= {id(buffer): buffer.detach() for buffer in block.buffers()}
    return deepcopy(block, twins)


def _look(tensor: Tensor) -> _Like:
    return _Like(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _distinct(blocks: Sequence[nn.Module], uses: Sequence[_Use]) -> list[_Use]:
    """One use of each kind: blocks of equal weights' shapes that are called alike are compiled
    as one."""
    kinds: dict[object, _Use] = {}
    for use in uses:
        weights = tuple(weight.shape for weight in blocks[use.place].parameters())
        kinds.setdefault((weights, repr(use.arguments)), use)
    return list(kinds.values())

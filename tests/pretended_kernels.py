"""Every operator of torch for tensors of the pretended card, see :mod:`tests.pretended_card`.

Such a tensor is torch's own in all it does: only its memory is the host's, taken in by way of
DLPack, which believes what it is told. Its operators are those of the CPU, on the same memory.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.pretended_card import Block, Card

COMPOSED = (
    "convolution",
    "scaled_dot_product_attention",
    "native_layer_norm",
    "native_group_norm",
    "linear",
)
"""Operators that a card has other ways to compute than a CPU, whose own ways are taken here."""
WAITING = ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "is_nonzero")
"""Operators that tell the host numbers of the device."""
INDICES = ("index", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
"""Operators whose indices may be the host's; to bring them over, it waits."""
_CPU = torch.device("cpu")
_KEYS = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


class Kernels:
    """In the block they are registered, in place of CUDA's own."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._blocks: dict[int, Block] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> Kernels:
        torch._C._ensureCUDADeviceGuardSet()
        self._library = torch.library.Library("aten", "IMPL", "CUDA")
        own = torch._C._dispatch_has_kernel_for_dispatch_key
        every = (name for name in torch._C._dispatch_get_all_op_names() if name[:6] == "aten::")
        names = {name[6:] for name in every if own(name, "CUDA")} | set(COMPOSED)
        special: dict[str, Callable[..., Any]] = {
            "empty.memory_format": self._empty,
            "empty_strided": self._empty_strided,
            "copy_": self._copy,
            "record_stream": self._record_stream,
            "is_pinned": lambda *_: False,
        }
        for name in names | set(special):
            work = special.get(name) or partial(self._run, name)
            self._library.impl(name, work, allow_override=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._library._destroy()

    # -- operators

    def _run(self, name: str, *args: Any, **options: Any) -> Any:
        op, views = _operator(name)
        if views:
            return op.redispatch(_KEYS, *args, **options)
        every = list(_tensors((*args, *options.values())))
        self._check(name, op, args, every)
        card, graph = self._card, self._card.graph
        if name.partition(".")[0] in WAITING:
            card.wait(name)
        written = _written(op, args, options)
        changed = {id(tensor) for tensor in written}  # optimisers have a thousand of them
        reads = [self._block(t) for t in every if t.is_cuda and id(t) not in changed]
        host_args, host_options = _mapped(args), _mapped_options(options)
        made = self._computed(op, host_args, host_options)
        taken: list[Block] = []
        back = {t.data_ptr(): t for t in written}
        for tensor, home in zip(written, _written(op, host_args, host_options), strict=True):
            if tensor.shape != home.shape:  # an empty one that was to be filled
                full = self._adopt(home.clone())
                taken.append(self._block(full))
                _operator("set_.source_Tensor")[0].redispatch(_KEYS, tensor, full)
                back[home.data_ptr()] = tensor
        writes = [block for block in map(self._block, written) if block not in taken]
        result = self._returned(made, back, taken)
        card.queued(name, reads, [*writes, *taken])
        if graph is not None:
            homes = [_alias(tensor) for tensor in _tensors((result,))]
            graph.note(partial(_again, op, host_args, host_options, homes), reads + writes, taken)
        return result

    def _computed(self, op: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return op(*args, **options)

    def _filled(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source)

    def _empty(self, size: Any, **options: Any) -> Tensor:
        layout = options.get("memory_format")
        shape = {} if layout is None else {"memory_format": layout}
        return self._adopt(torch.empty(size, dtype=options.get("dtype"), device=_CPU, **shape))

    def _empty_strided(self, size: Any, stride: Any, **options: Any) -> Tensor:
        return self._adopt(
            torch.empty_strided(size, stride, dtype=options.get("dtype"), device=_CPU)
        )

    def _copy(self, to: Tensor, given: Tensor, non_blocking: bool = False) -> Tensor:
        card, source, target = self._card, _alias(given), _alias(to)
        reads = [self._block(given)] if given.is_cuda else []
        writes = [self._block(to)] if to.is_cuda else []
        if to.is_cuda and given.is_cuda:
            self._filled(target, source)
            card.queued("copy_", reads, writes)
            if card.graph is not None:
                card.graph.note(partial(target.copy_, source), reads + writes, [])
            return to
        pinned = (given if to.is_cuda else to).is_pinned()
        if to.is_cuda:
            card.queued("copy_ to the card", reads, writes)
            self._filled(target, source)
            if not (pinned and non_blocking):
                card.wait("a copy to the card")
            return to
        card.queued("copy_ to the host", reads, writes)
        if pinned and non_blocking:
            assert card.graph is None, "a copy to the host is not recorded here"
            card.bring_home(target, source.to(target.dtype).clone())
        else:
            card.wait("a copy to the host")
            target.copy_(source)
        return to

    def _record_stream(self, tensor: Tensor, stream: Any) -> None:
        raise NotImplementedError("record_stream: Farm keeps what it uses until it is done")

    def _check(self, name: str, op: Any, args: tuple[Any, ...], every: list[Tensor]) -> None:
        """As a card's own kernels do: all on the card, but for single numbers."""
        if name.partition(".")[0] in INDICES:
            if any(not t.is_cuda for t in every):
                self._card.wait("indices of the host")
            every = [*_tensors((args[0], *args[2:3]))]
        pointwise = torch.Tag.pointwise in op.tags or name == "fill_.Tensor"
        for tensor in every:
            if not tensor.is_cuda and not (pointwise and tensor.ndim == 0):
                raise RuntimeError(
                    f"{name}: Expected all tensors to be on the same device, but found at least "
                    "two devices, cuda:0 and cpu!"
                )

    # -- tensors

    def _block(self, tensor: Tensor) -> Block:
        return self._blocks[tensor.untyped_storage().data_ptr()]

    def _returned(self, made: Any, back: dict[int, Tensor], taken: list[Block]) -> Any:
        if isinstance(made, Tensor):
            if made.numel() and made.data_ptr() in back:
                return back[made.data_ptr()]
            tensor = self._adopt(made)
            taken.append(self._block(tensor))
            return tensor
        if isinstance(made, list | tuple):
            return type(made)(self._returned(one, back, taken) for one in made)
        return made

    def _adopt(self, made: Tensor) -> Tensor:
        """The same tensor, on the card."""
        self.sweep()
        if made.untyped_storage().data_ptr() in self._blocks:
            made = made.clone()
        if made.untyped_storage().nbytes() == 0:
            storage = torch.empty(64, dtype=torch.uint8)
        else:
            storage = torch.empty(0, dtype=torch.uint8).set_(made.untyped_storage())
        block = self._card.take(storage)
        self._blocks[storage.data_ptr()] = block
        flat = _imports.tensor(storage)
        return torch.ops.aten.as_strided.default.redispatch(
            _KEYS, flat.view(made.dtype), made.size(), made.stride(), made.storage_offset()
        )

    def sweep(self) -> None:
        """Give back what no tensor uses any more."""
        with self._lock:
            for address in _imports.gone():
                block = self._blocks.pop(address, None)
                if block is not None:  # or it is of a card that was there before
                    self._card.give_back(block)


@cache
def _operator(name: str) -> tuple[Any, bool]:
    """An operator by name, and whether it gives another view of the same memory."""
    base, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, base), overload or "default")
    views = any(each.alias_info and not each.alias_info.is_write for each in op._schema.returns)
    return op, views or base in ("set_", "resize_")


def _written(op: Any, args: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
    found: list[Any] = []
    for place, told in enumerate(op._schema.arguments):
        if told.alias_info and told.alias_info.is_write:
            given = options.get(told.name) if told.kwarg_only else args[place : place + 1]
            found += _tensors((given,))
    return found


def _among(tensor: Tensor, others: list[Tensor]) -> bool:
    return any(tensor is other for other in others)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(values: Any) -> Any:
    """The arguments, with the host's view of each of the card's tensors."""
    if isinstance(values, Tensor):
        return _alias(values)
    if isinstance(values, list | tuple):
        return type(values)(_mapped(one) for one in values)
    return values


def _mapped_options(options: dict[str, Any]) -> dict[str, Any]:
    return {name: _CPU if name == "device" else _mapped(value) for name, value in options.items()}


def _alias(tensor: Tensor) -> Tensor:
    """A CPU tensor on the same memory. It does not keep that memory."""
    if not tensor.is_cuda:
        return tensor
    if not tensor.numel():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    storage = tensor.untyped_storage()
    there = torch._C._construct_storage_from_data_pointer(
        storage.data_ptr(), _CPU, storage.nbytes()
    )
    return torch.empty(0, dtype=tensor.dtype).set_(
        there, tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def _again(op: Any, args: Any, options: dict[str, Any], homes: list[Tensor]) -> None:
    """An operation that was recorded, once more."""
    for home, made in zip(homes, _tensors((op(*args, **options),)), strict=True):
        if home.data_ptr() != made.data_ptr():
            home.copy_(made)


# -- DLPack


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("number", ctypes.c_int)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype = ctypes.py_object
_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_CUDA, _UINT8 = 2, _Type(1, 8, 1)
_ADD_ONE = ctypes.cast(ctypes.CDLL(None).sem_post, ctypes.c_void_p).value
"""What is called when the last tensor of some memory is gone: it adds one to the first number of
what was handed over. Nothing of Python may run there, as an exception may be on its way."""
MOST = 1 << 16


class _Imports:
    """Memory of the host as tensors of the card."""

    def __init__(self) -> None:
        self._slots = (_Managed * MOST)()
        words = ctypes.sizeof(_Managed) // 8
        self._now = np.frombuffer(self._slots, dtype=np.uint64)[::words]
        self._given = np.zeros(MOST, dtype=np.uint64)
        self._kept: dict[int, tuple[Tensor, Any]] = {}
        self._free = list(range(MOST - 1, -1, -1))
        self._top = 0
        self._lock = threading.Lock()

    def tensor(self, memory: Tensor) -> Tensor:
        """[n] uint8 of the host, as one of the card."""
        with self._lock:
            place = self._free.pop()
            self._top = max(self._top, place + 1)
            slot, shape = self._slots[place], (ctypes.c_int64 * 1)(memory.numel())
            self._kept[place] = memory, shape
            slot.tensor = _Tensor(memory.data_ptr(), _Device(_CUDA, 0), 1, _UINT8, shape, None, 0)
            slot.deleter = _ADD_ONE
            self._given[place] = memory.data_ptr()
        made: Tensor = torch._C._from_dlpack(_capsule(ctypes.addressof(slot), b"dltensor", None))
        return made

    def gone(self) -> list[int]:
        """Addresses of memory that no tensor uses any more, each told once."""
        with self._lock:
            places = np.flatnonzero(self._now[: self._top] != self._given[: self._top]).tolist()
            for place in places:
                self._given[place] = self._now[place]
                self._free.append(place)
            return [self._kept.pop(place)[0].data_ptr() for place in places]


_imports = _Imports()

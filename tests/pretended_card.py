"""A card that is not there: tensors that say ``cuda:0``, and are computed by the CPU.

The first run on a GPU dies of what a CPU forgives: tensors of two devices in one sum, a peak that
nobody keeps before CUDA is up, a stream that reads what another has not written. So here every
operator of a ``cuda`` tensor is checked as a card would, and then computed for true, which makes
pictures comparable bit for bit with those of the CPU. torch's own Python code for CUDA runs as it
is; what is replaced lies below it, in ``torch._C`` and in :mod:`tests.pretended_kernels`.

What a card does late is late here: a copy to the host holds rubbish until the host has waited
for its stream, and an event has not passed when it is first asked. Every memory access is held
against what its stream has waited for, as ``compute-sanitizer`` would. Recorded graphs are
replayed on the memory they were recorded with. What this cannot show: speed, rounding of the
card's own kernels, and whatever CUDA does beyond its documentation.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.pretended_kernels import Kernels

GIB = 2**30
CONTEXT = 400 * 2**20
"""What the context of CUDA takes of the card."""
SEGMENT = 2 * 2**20

Clock = dict[int, int]
"""Work known to be done, by stream: how many operations of it."""


@dataclass(eq=False)
class Block:
    """A piece of the card's memory.

    Attributes:
        memory: the host's, in which it really lies.
        stream: it was taken on; the allocator gives it away again in that stream's order.
        written, read: by which streams last, as their how-manieth operation.
        graph: that it was taken in.
    """

    memory: torch.Tensor
    size: int
    stream: int
    written: tuple[int, int] | None = None
    read: dict[int, int] = field(default_factory=dict)
    graph: Graph | None = None
    freed: bool = False


class Card:
    """Memory, streams and clocks of one card.

    Attributes:
        races: accesses that nothing keeps in order, each in a sentence.
        waits: how often the host waited for the device, by why and where.
        refuse: asked before each allocation, with its bytes, whether memory runs out.
    """

    def __init__(self, total: int = 24 * GIB) -> None:
        self.total = total
        self.races: list[str] = []
        self.waits: Counter[str] = Counter()
        self.refuse: Callable[[int], bool] = lambda _: False
        self.sweep: Callable[[], None] = lambda: None
        self.broken: Exception | None = None
        self.observers: list[Callable[[int, int, int, int], None]] = []
        self.limit = total - CONTEXT
        self.allocated = self.reserved = self.peak = self.peak_reserved = 0
        self.recording: object = None
        self.pinned: dict[int, torch.Tensor] = {}
        self.done: Clock = {}
        self._known: dict[int, Clock] = {}
        self._late: list[tuple[int, int, torch.Tensor, torch.Tensor]] = []
        self._own = threading.local()
        self._lock = threading.RLock()

    # -- streams

    @property
    def stream(self) -> int:
        """That this thread queues its work on."""
        return getattr(self._own, "stream", 0)

    @stream.setter
    def stream(self, stream: int) -> None:
        self._own.stream = stream

    @property
    def graph(self) -> Graph | None:
        """That this thread records."""
        return getattr(self._own, "graph", None)

    @graph.setter
    def graph(self, graph: Graph | None) -> None:
        self._own.graph = graph

    def clock(self, stream: int) -> Clock:
        """What is done before whatever is queued on the stream next."""
        with self._lock:
            known = self._known.setdefault(stream, {})
            _join(known, self.done)
            return known

    def past(self, clock: Clock) -> bool:
        """Whether the host knows that all this is done."""
        return all(self.done.get(stream, 0) >= tick for stream, tick in clock.items())

    def wait(self, why: str, clock: Clock | None = None) -> None:
        """The host waits: for a clock, or for this thread's stream."""
        if self.graph is not None:
            self.graph.spoilt = True
            raise torch.AcceleratorError("operation not permitted when stream is capturing")
        self.waits[f"{why}, {_place()}"] += 1
        self.reached(self.clock(self.stream) if clock is None else clock)

    def reached(self, clock: Clock) -> None:
        """The host knows that this is done; copies that belong to it have come."""
        if self.broken:
            raise self.broken
        with self._lock:
            _join(self.done, clock)
            waiting, self._late = self._late, []
            for stream, tick, home, content in waiting:
                if self.done.get(stream, 0) >= tick:
                    home.copy_(content)
                else:
                    self._late.append((stream, tick, home, content))

    def bring_home(self, home: torch.Tensor, content: torch.Tensor) -> None:
        """Copy to the host when this thread's stream gets there; until then it is rubbish."""
        with self._lock:
            self._late.append((self.stream, self._known[self.stream][self.stream], home, content))
        home.copy_(content.logical_not() if content.dtype == torch.bool else content * 0 + 77)

    def queued(self, name: str, reads: list[Block], writes: list[Block]) -> None:
        """One operation on this thread's stream."""
        if self.broken:
            raise self.broken
        if self.graph is not None:  # it is only noted
            return
        with self._lock:
            stream, clock = self.stream, self.clock(self.stream)
            clock[stream] = tick = clock.get(stream, 0) + 1
            for block in (*reads, *writes):
                before = list(block.read.items()) if block in writes else []
                before += [block.written] if block.written else []
                if any(clock.get(other, 0) < when for other, when in before if other != stream):
                    self.races.append(f"{name} on stream {stream} waits for nobody, {_place()}")
                if block.freed:
                    self.races.append(f"{name} uses memory that was given back, {_place()}")
            for block in reads:
                block.read[stream] = tick
            for block in writes:
                block.read, block.written = {}, (stream, tick)

    # -- memory

    def take(self, memory: torch.Tensor) -> Block:
        """Account for memory that a tensor of the card lies in."""
        size = -(-max(1, memory.untyped_storage().nbytes()) // 512) * 512
        with self._lock:
            if self.allocated + size > self.limit or self.refuse(size):
                free = max(0, self.total - CONTEXT - self.reserved)
                for observer in self.observers:
                    observer(0, size, self.total, free)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
            self.reserved = max(self.reserved, -(-self.allocated // SEGMENT) * SEGMENT)
            self.peak_reserved = max(self.peak_reserved, self.reserved)
        return Block(memory, size, self.stream, graph=self.graph)

    def give_back(self, block: Block) -> None:
        """A tensor is gone. Its memory may be given to the next in the order of its stream."""
        with self._lock:
            block.freed = True
            self.allocated -= block.size
            clock = self.clock(block.stream)
            used = dict([block.written] if block.written else []) | block.read
            late = [one for one, when in used.items() if clock.get(one, 0) < when]
            if late and block.graph is None:
                self.races.append(f"memory is given back while stream {late} uses it, {_place()}")

    def stats(self) -> dict[str, Any]:
        """As ``torch._C._cuda_memoryStats``."""
        self.sweep()
        held = {"current": self.allocated, "peak": self.peak, "allocated": 0, "freed": 0}
        taken = {"current": self.reserved, "peak": self.peak_reserved, "allocated": 0, "freed": 0}
        return {
            "allocated_bytes": {"all": held},
            "active_bytes": {"all": held},
            "reserved_bytes": {"all": taken},
        }

    def reset_peaks(self) -> None:
        self.sweep()
        self.peak, self.peak_reserved = self.allocated, self.reserved

    def empty_cache(self) -> None:
        self.sweep()
        self.reserved = -(-self.allocated // SEGMENT) * SEGMENT

    def set_fraction(self, fraction: float) -> None:
        self.limit = min(int(self.total * fraction), self.total - CONTEXT)

    @property
    def free(self) -> int:
        return self.total - CONTEXT - self.reserved


def _join(one: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        one[stream] = max(tick, one.get(stream, 0))


def _place() -> str:
    """The innermost line of Farm's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if "/farm/" in code.co_filename or "/bench/" in code.co_filename:
            return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return "outside of Farm"


class Graph:
    """Stands in for ``torch.cuda.CUDAGraph``: replays the very operations it recorded."""

    card: Card

    def __init__(self, keep_graph: bool = False) -> None:
        self._work: list[Callable[[], None]] = []
        self._read: list[Block] = []
        self._made: list[Block] = []
        self._kept: list[Block] = []
        self.replays = 0
        self.spoilt = False

    def capture_begin(
        self,
        pool: object = None,
        capture_error_mode: str = "global",
        check_input_liveness: bool = False,
    ) -> None:
        assert capture_error_mode in ("global", "thread_local", "relaxed")
        assert self.card.stream != 0, "the default stream cannot be recorded"
        self.card.graph = self

    def capture_end(self) -> None:
        self.card.graph = None
        if self.spoilt or not self._work:
            raise torch.AcceleratorError("operation failed due to a previous error during capture")
        for block in self._made:  # nothing has run yet
            block.memory.untyped_storage().fill_(0x7F)

    def note(self, work: Callable[[], None], read: list[Block], made: list[Block]) -> None:
        """One operation that is recorded."""
        self._work.append(work)
        self._kept += read
        self._read += [block for block in read if block.graph is not self]
        self._made += made

    def replay(self) -> None:
        self.card.queued("a graph", self._read, [one for one in self._made if not one.freed])
        self.replays += 1
        for work in self._work:
            work()


def _stream_class(card: Card) -> type:
    class Stream:
        """Stands in for ``torch.cuda.Stream``."""

        last = 0

        def __init__(self, device: Any = None, priority: int = 0, **known: int) -> None:
            torch.cuda._lazy_init()
            if "stream_id" in known:
                self.stream_id = known["stream_id"]
            else:
                Stream.last += 1
                self.stream_id = Stream.last
            self.device = torch.device("cuda", 0)
            self.device_index, self.device_type = 0, 1
            self.cuda_stream = self.stream_id

        def wait_event(self, event: Any) -> None:
            event.wait(self)

        def wait_stream(self, stream: Stream) -> None:
            self.wait_event(stream.record_event())

        def record_event(self, event: Any = None) -> Any:
            event = event or torch.cuda.Event()
            event.record(self)
            return event

        def query(self) -> bool:
            return card.past(card.clock(self.stream_id))

        def synchronize(self) -> None:
            card.wait("a stream", card.clock(self.stream_id))

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Stream) and other.stream_id == self.stream_id

        def __hash__(self) -> int:
            return self.stream_id

    return Stream


def _event_class(card: Card) -> type:
    class Event:
        """Stands in for ``torch.cuda.Event``."""

        def __init__(
            self,
            enable_timing: bool = False,
            blocking: bool = False,
            interprocess: bool = False,
            external: bool = False,
        ) -> None:
            self._timing = enable_timing
            self._clock: Clock | None = None
            self._asked = False

        def record(self, stream: Any = None) -> None:
            stream = stream or torch.cuda.current_stream()
            self._clock, self._asked = dict(card.clock(stream.stream_id)), False
            self._at = time.perf_counter()

        def wait(self, stream: Any = None) -> None:
            stream = stream or torch.cuda.current_stream()
            _join(card.clock(stream.stream_id), self._clock or {})

        def query(self) -> bool:
            if self._clock is None:
                return True
            if not self._asked and not card.past(self._clock):
                self._asked = True
                return False
            card.reached(self._clock)
            return True

        def synchronize(self) -> None:
            if self._clock is not None and not card.past(self._clock):
                card.wait("an event", self._clock)

        def elapsed_time(self, end_event: Event) -> float:
            if not (self._timing and end_event._timing):
                raise ValueError("both events must be made with enable_timing=True")
            if self._clock is None or end_event._clock is None:
                raise ValueError("both events must have been recorded")
            if not card.past(end_event._clock):
                raise RuntimeError("CUDA error: device not ready")
            return 1000 * (end_event._at - self._at)

    return Event


@contextmanager
def pretended(total: int = 24 * GIB, made: type[Kernels] = Kernels) -> Iterator[Card]:
    """In the block this process has one card, CUDA not yet being up."""
    card = Card(total)
    with pytest.MonkeyPatch.context() as patch, made(card) as kernels:
        card.sweep = kernels.sweep
        _below_python(card, patch)
        yield card
        card.sweep()
        # What is still queued is done before the card goes.
        card.broken = None
        card.reached(dict(card.clock(0)))


def _below_python(card: Card, patch: pytest.MonkeyPatch) -> None:
    stream, pools = _stream_class(card), iter(range(1, 10**6))
    graph = type("CUDAGraph", (Graph,), {"card": card})
    patch.setattr(torch.cuda, "_initialized", False)
    patch.setattr(torch.cuda, "_queued_calls", [])
    patch.setattr(torch.cuda, "_cached_device_count", None)
    patch.setattr(torch.cuda, "default_generators", (torch.Generator(),))
    for module in (torch.cuda, torch.cuda.streams):
        patch.setattr(module, "Stream", stream)
        patch.setattr(module, "Event", _event_class(card))
    for module in (torch.cuda, torch.cuda.graphs):
        patch.setattr(module, "CUDAGraph", graph)
    for name in ("_exchange_device", "_maybe_exchange_device"):
        patch.setattr(torch.cuda, name, lambda _: 0)
    facts = {"name": "Pretended 3090", "major": 8, "minor": 6, "total_memory": card.total}
    properties = SimpleNamespace(**facts, multi_processor_count=82, uuid="pretended")
    patch.setattr(torch.cuda, "_get_device_properties", lambda _: properties, raising=False)
    runtime = SimpleNamespace(cudaMemGetInfo=lambda _: (card.free, card.total))
    patch.setattr(torch.cuda, "cudart", lambda: torch.cuda._lazy_init() or runtime)

    def booted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if not torch.cuda.is_initialized():
                raise RuntimeError("Invalid device argument 0: did you call init?")
            return work(*args)

        return call

    def use(number: int, *_: int) -> None:
        card.stream = number

    below: dict[str, Callable[..., Any]] = {
        "_cuda_init": lambda: None,
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": lambda _: None,
        "_cuda_synchronize": lambda: card.wait("all", _everything(card)),
        "_cuda_emptyCache": card.empty_cache,
        "_cuda_memoryStats": booted(lambda _: card.stats()),
        "_cuda_resetPeakMemoryStats": booted(lambda _: card.reset_peaks()),
        "_cuda_setMemoryFraction": lambda fraction, _: card.set_fraction(fraction),
        "_cuda_memorySnapshot": lambda _: {"segments": [], "device_traces": [[card.recording]]},
        "_cuda_record_memory_history": lambda *told: setattr(card, "recording", told),
        "_cuda_attach_out_of_memory_observer": card.observers.append,
        "_cuda_getCurrentStream": lambda _: (card.stream, 0, 1),
        "_cuda_getDefaultStream": lambda _: (0, 0, 1),
        "_cuda_setStream": lambda stream_id, device_index, device_type: use(stream_id),
        "_cuda_isCurrentStreamCapturing": lambda: card.graph is not None,
        "_graph_pool_handle": lambda: (0, next(pools)),
        "_host_emptyCache": lambda: None,
    }
    for name, work in below.items():
        assert hasattr(torch._C, name), f"torch has no {name} any more"
        patch.setattr(torch._C, name, work)
    patch.setattr(torch.cuda.graphs, "_graph_pool_handle", below["_graph_pool_handle"])
    _pinned_memory(card, patch)


def _everything(card: Card) -> Clock:
    clock: Clock = {}
    for stream in list(card._known):
        _join(clock, card.clock(stream))
    return clock


def _pinned_memory(card: Card, patch: pytest.MonkeyPatch) -> None:
    """Memory that a card copies from and to by itself is noted by its address."""
    makers = {name: getattr(torch, name) for name in ("empty", "tensor")}

    def noted(tensor: torch.Tensor) -> torch.Tensor:
        torch.cuda._lazy_init()
        card.pinned[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def pin(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
        assert not tensor.is_cuda, "only dense CPU tensors can be pinned"
        return noted(tensor.clone())

    def maker(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*told: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
            tensor = make(*told, **options)
            return noted(tensor) if pin_memory else tensor

        return made

    # Torch looks up once what `with torch.device(...)` changes, and must not find these.
    torch.utils._device._device_constructors()
    for name, make in makers.items():
        patch.setattr(torch, name, maker(make))
    patch.setattr(torch.Tensor, "pin_memory", pin)
    patch.setattr(
        torch.Tensor, "is_pinned", lambda one: one.untyped_storage().data_ptr() in card.pinned
    )

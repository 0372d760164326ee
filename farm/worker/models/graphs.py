"""Calls recorded once for each shape of their inputs and replayed.

A recorded call is one order to the device instead of thousands, so the host keeps up with small
batches on large cards (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/). It reads
its inputs, and the weights, where they lay when it was recorded: weights may change in place, as
LoRAs change them, but must not move.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from farm.worker.models.workbench import WORKBENCH

log = logging.getLogger(__name__)

WARM = 2
"""Calls of a shape that run as they are, and load what they need, before one is recorded."""
KEPT = 16
"""Shapes whose recording is kept, those used last."""

Inputs: TypeAlias = Sequence[Tensor | None]
Call: TypeAlias = Callable[[Inputs], Tensor]


class Recorder(Protocol):
    """What can record the work of a device.

    Attributes:
        bytes: memory of the device that all it has recorded holds.
    """

    bytes: int

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Queue nothing of ``work``, but note it.

        Returns:
            What queues it, any number of times, and the tensor that it fills each time.
        """

    def forget(self) -> None:
        """Nothing that it has recorded is there any more."""


class CudaRecorder:
    """Records in CUDA graphs. They share their memory, as no two of them run at a time and what
    one has made is copied before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self.bytes = 0
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            # Other threads may take memory of the device meanwhile; they only must not here.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                # What is free in the pool is taken from there; the rest is new.
                reserved = torch.cuda.memory_reserved(self._device)
                made = work()
                self.bytes += torch.cuda.memory_reserved(self._device) - reserved
        finally:
            # Where ending the recording fails too, torch leaves the thread on its stream.
            torch.cuda.set_stream(before)
        return graph.replay, made

    def forget(self) -> None:
        """From now on memory is shared anew: torch opens none again that nobody uses any more."""
        self._pool = torch.cuda.graph_pool_handle()
        self.bytes = 0


class Graphs:
    """Calls by recordings, where there is one. Call it from one thread at a time.

    What cannot be recorded runs as it is for ever, and the log says why.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._calls: Counter[Hashable] = Counter()
        self._recorded: OrderedDict[Hashable, _Recorded] = OrderedDict()
        self._failed: set[Hashable] = set()

    @property
    def bytes(self) -> int:
        """Memory of the device that recordings hold."""
        return self._recorder.bytes

    def __call__(self, key: Hashable, call: Call, inputs: Inputs) -> Tensor:
        """What ``call`` makes of its inputs.

        Args:
            key: of the recording; it must tell all apart that is not the same call with other
                numbers.
        """
        recorded = self._recorded.get(key) or self._record(key, call, inputs)
        if recorded is None:
            return call(inputs)
        self._recorded.move_to_end(key)
        return recorded.made_of(inputs)

    def forget(self) -> bool:
        """Let go of all recordings and their memory: weights have moved, or memory ran out.

        Returns:
            Whether there were any.
        """
        any_there = bool(self._recorded)
        self._recorded.clear()
        self._calls.clear()
        self._recorder.forget()
        return any_there

    def _record(self, key: Hashable, call: Call, inputs: Inputs) -> _Recorded | None:
        self._calls[key] += 1
        if self._calls[key] <= WARM or key in self._failed:
            return None
        if not WORKBENCH.acquire(blocking=False):
            return None
        try:
            self._recorded[key] = _Recorded(self._recorder, call, inputs)
        except Exception as error:
            self._failed.add(key)
            if not self._recorded:
                self._recorder.forget()
            log.warning("calls of %s are not recorded: %r", key, error)
            return None
        finally:
            WORKBENCH.release()
        if len(self._recorded) > KEPT:
            self._recorded.popitem(last=False)
        return self._recorded[key]


class _Recorded:
    """A recording, and the memory that it reads and fills."""

    def __init__(self, recorder: Recorder, call: Call, inputs: Inputs) -> None:
        own = [None if given is None else given.clone() for given in inputs]
        self._replay, self._made = recorder.record(lambda: call(own))
        self._inputs = own

    def made_of(self, inputs: Inputs) -> Tensor:
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self._replay()
        return self._made.clone()

"""Tensors of a safetensors file into memory of our own, by plain parallel reads.

A mapped file would be quicker to "load", but its weights stay views of the disk: the true read
comes later, page by page, and a file that is cut short or replaced then kills the process with
SIGBUS.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor

from farm.errors import CheckpointError
from farm.worker.models.files import open_file
from farm.worker.models.flaws import flaws
from farm.worker.models.header import Header, TensorEntry, damaged, file_identity

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
Turn: TypeAlias = Callable[[], AbstractContextManager[None]]
READERS = 4
STAGE = 4 * 2**20
"""Bytes that a reading thread turns and checks at a time; more would not stay in a CPU's cache."""
SHOWN_NAMES = 4


def read_tensors(
    header: Header, names: Iterable[str], *, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """The named tensors on ``device``, floating ones in ``dtype``, those of four dimensions
    channels last.

    Raises:
        CheckpointError: the file is not, or no longer, the one that ``header`` describes, or any
            value in them is NaN or infinite in ``dtype``.
    """
    with Readers() as readers:
        return readers.begin(header, names, dtype=dtype, device=device)()


def check_unchanged(header: Header) -> None:
    """Raise :class:`CheckpointError` if the path now holds another file, or an edited one."""
    try:
        now = file_identity(header.path.stat())
    except OSError as error:
        raise _changed(header) from error
    if now != header.identity:
        raise _changed(header)


class Readers:
    """Threads that read, while the one who asked builds models of what they have read.

    ``with Readers() as readers:`` ends them, and what they have not read yet is left unread.

    Args:
        turn: entered by a thread for each tensor, so that it can be made to wait its turn.
    """

    def __init__(self, turn: Turn = nullcontext) -> None:
        self._turn = turn

    def __enter__(self) -> Readers:
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        self._stages = threading.local()
        self._files = ExitStack()
        self._left = False
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def begin(
        self, header: Header, names: Iterable[str], *, dtype: torch.dtype, device: torch.device
    ) -> Callable[[], dict[str, Tensor]]:
        """Read these behind all that was asked for before.

        Returns:
            What waits for the tensors and gives them as :func:`read_tensors` does; it raises as
            that does.
        """
        check_unchanged(header)
        file = self._files.enter_context(_File(header))
        waiting = deque(sorted(names, key=lambda name: header.tensors[name].start))
        found: dict[str, Tensor] = {}
        broken: dict[str, int] = {}

        def read() -> None:
            while waiting and not self._left:
                try:
                    name = waiting.popleft()
                except IndexError:  # another thread was quicker
                    return
                with self._turn():
                    found[name], count = self._read(file, header.tensors[name], dtype, device)
                if count:
                    broken[name] = count

        threads = [self._pool.submit(read) for _ in range(READERS)]

        def wait() -> dict[str, Tensor]:
            for thread in threads:
                thread.result()
            if broken:
                raise _broken(header, broken, dtype)
            return found

        return wait

    def _read(
        self, file: _File, entry: TensorEntry, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, int]:
        """One tensor, turned into its precision and layout piece by piece on its way, and how
        many of its values are not finite there.

        Memory that is touched for the first time is what a load takes longest for, so nothing is
        read into memory that is not kept.
        """
        stored, broken = DTYPES[entry.dtype], 0
        tensor = _room(entry.shape, dtype if stored.is_floating_point else stored, device)
        if device.type == "cpu" and tensor.dtype == stored and tensor.is_contiguous():
            bytes = tensor.view(-1).view(torch.uint8)
            for first in range(0, len(bytes), STAGE):
                part = bytes[first : first + STAGE]
                broken += file.fill(part, entry.start + first, stored, tensor.dtype)
            return tensor, broken
        rows = tensor if tensor.ndim > 1 else tensor.view(-1)
        row = (entry.end - entry.start) // max(1, len(rows))
        step = max(1, STAGE // max(1, row))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            stage = self._stage(len(part) * row, pinned=device.type == "cuda")
            broken += file.fill(stage, entry.start + first * row, stored, tensor.dtype)
            # To the card as it is: to turn it is quicker there.
            part.copy_(stage.view(stored).view(part.shape).to(device))
        return tensor, broken

    def _stage(self, count: int, *, pinned: bool) -> Tensor:
        stage: Tensor | None = getattr(self._stages, "stage", None)
        if stage is None or stage.numel() < count:
            stage = torch.empty(max(count, STAGE), dtype=torch.uint8, pin_memory=pinned)
            self._stages.stage = stage
        return stage[:count]


class _File:
    """An open checkpoint."""

    def __init__(self, header: Header) -> None:
        self._header = header

    def __enter__(self) -> _File:
        try:
            self._file = open_file(self._header.path)
        except OSError as error:
            raise _changed(self._header) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fill(self, block: Tensor, offset: int, stored: torch.dtype, kept: torch.dtype) -> int:
        """Read into ``block``, [n] uint8 on the CPU, from ``offset`` on.

        Returns:
            How many of its values, ``stored`` as they are, are not finite once they are ``kept``.
        """
        buffer: Any = block.numpy()
        view = memoryview(buffer)
        while view:
            count = os.preadv(self._file.fileno(), [view], offset)
            if count == 0:
                raise _changed(self._header)
            view, offset = view[count:], offset + count
        return flaws(block, stored, kept) if stored.is_floating_point else 0


def _room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a tensor; convolutions are channels last.

    A CPU decodes 1.2 times as fast so, and cuDNN needs it.
    """
    if len(shape) == 4 and dtype.is_floating_point:
        return torch.empty(shape, dtype=dtype, device=device, memory_format=torch.channels_last)
    return torch.empty(shape, dtype=dtype, device=device)


def _changed(header: Header) -> CheckpointError:
    return damaged(
        header.path, "was changed while it was loaded", "Submit again when the copy is complete."
    )


def _broken(header: Header, counts: Mapping[str, int], dtype: torch.dtype) -> CheckpointError:
    """Counts of values by the tensors they are in."""
    named = [f"{name} ({counts[name]})" for name in sorted(counts)]
    more = len(named) - SHOWN_NAMES
    kind = str(dtype).removeprefix("torch.")
    return damaged(
        header.path,
        f"holds NaN or infinity in {kind}: {sum(counts.values())} values, of "
        f"{', '.join(named[:SHOWN_NAMES])}" + (f" and {more} more" if more > 0 else ""),
        "Get another copy or version of it.",
    )

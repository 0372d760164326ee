"""What steps let go of is kept for the next ones, what weights took is not."""

from __future__ import annotations

import ctypes
import platform
import resource
from collections.abc import Callable

import psutil
import pytest

from farm.worker.engine.heap import Heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")

LARGE = 48 * 2**20
PAGES = LARGE // resource.getpagesize()


def faults(work: Callable[[], None]) -> int:
    """Pages that the machine had to find for this thread."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before


def step() -> None:
    """Take a large block, write to it, let go of it."""
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(LARGE)))
    ctypes.memset(block, 1, LARGE)
    library.free(block)


def test_the_next_step_finds_its_memory_where_the_last_one_left_it() -> None:
    heap = Heap()
    heap.tidy(["one"])
    step()
    assert faults(step) < PAGES / 100
    heap.tidy(["one"])
    assert faults(step) < PAGES / 100


@pytest.mark.parametrize("resident", [(), ("one", "other"), ("other",)])
def test_when_checkpoints_come_or_go_all_that_is_free_goes_back(resident: tuple[str, ...]) -> None:
    heap, process = Heap(), psutil.Process()
    heap.tidy(["one"])
    step()
    before = process.memory_info().rss
    heap.tidy(resident)
    assert before - process.memory_info().rss > LARGE / 2

"""What fails costs its own lines only."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def told_if_it_fails(name: str, failed: list[str]) -> Iterator[None]:
    """What fails in the block is told, and the rest goes on."""
    try:
        yield
    except Exception as error:
        failed.append(name)
        print(f"\n{name} failed: {error!r}")
        traceback.print_exc()
        traceback.clear_frames(error.__traceback__)  # and what they hold of the card
    finally:
        sys.stdout.flush()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

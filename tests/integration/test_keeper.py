"""A store that refuses: what is finished is held, what is not is not begun."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from farm.errors import Unavailable
from farm.spec.output import PNG
from farm.storage import ImageStore
from farm.worker import keeper as keeping
from farm.worker import picture
from farm.worker.keeper import Keeper
from tests.conftest import eventually
from tests.small_disk import REFUSED

ENCODED = picture.encode(np.zeros((8, 8, 3), np.uint8), "p", PNG)
JOB = (1, 0, 1)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, the disk is full."""
    monkeypatch.setattr(keeping, "_PROBE", 0.02)
    full, fsync = threading.Event(), os.fsync

    def sync(file: int) -> None:
        if full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", sync)
    full.set()
    return full


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path))


def test_an_image_waits_until_there_is_space(full: threading.Event, store: ImageStore) -> None:
    keeper = Keeper(store)
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(keeper.keep, ENCODED, JOB)
        eventually(lambda: keeper.refusal)
        assert "the disk is full" in str(keeper.refusal)
        full.clear()
        row = kept.result(timeout=20)
    assert keeper.refusal is None
    assert sorted(store.paths()) == sorted([row["path"], row["thumb_path"]])


@pytest.mark.parametrize("why", ["it took too long", "the worker leaves"])
def test_what_is_given_up_leaves_nothing(
    full: threading.Event, store: ImageStore, why: str
) -> None:
    keeper = Keeper(store, patience=0.05 if why == "it took too long" else 60)
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(keeper.keep, ENCODED, JOB)
        eventually(lambda: keeper.refusal)
        if why == "the worker leaves":
            keeper.leave()
        with pytest.raises(Unavailable, match="disk is full"):
            kept.result(timeout=20)
    keeper.leave()
    assert list(store.paths()) == []


def test_a_store_is_tried_before_the_work(full: threading.Event, store: ImageStore) -> None:
    keeper = Keeper(store)
    keeper.check()
    assert keeper.refusal
    full.clear()
    eventually(lambda: keeper.refusal is None)
    keeper.check()
    assert keeper.refusal is None
    assert store.remove_partial(older_than=0) == 0


def test_a_disk_that_is_full_for_real(tmp_path: Path) -> None:
    """Not with RLIMIT_FSIZE: that a file is too large is EFBIG, another error than a full disk."""
    unshare = shutil.which("unshare")
    if not unshare:
        pytest.skip("this system has no unshare, and a mount needs rights without it")
    done = subprocess.run(
        [unshare, "-rm", sys.executable, "-m", "tests.small_disk", str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == REFUSED or "unshare" in done.stderr:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    assert done.stdout.strip() == "ok", done.stderr

"""A disk that is full for real: ``unshare -rm python -m tests.small_disk FOLDER``.

In a namespace of its own, where no rights are needed, a file system of four megabytes is mounted on
the folder, and filled. Exits with 77 where that is not allowed.
"""

from __future__ import annotations

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
from farm.worker import picture
from farm.worker.keeper import Keeper

REFUSED = 77
SIZE = 4 << 20


def main(folder: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)]
    if done := subprocess.run(mount, capture_output=True, text=True, check=False).returncode:
        print(f"mount is refused: {done}", file=sys.stderr)
        sys.exit(REFUSED)
    store = ImageStore(str(folder))
    noise = np.random.default_rng(1).integers(0, 255, (128, 128, 3), np.uint8)
    encoded = picture.encode(noise, "p", PNG)
    ballast = folder / "ballast"
    fill(ballast)

    with pytest.raises(Unavailable, match="the disk is full"):
        store.put("a.png", bytes(1 << 16))
    assert not any((folder / ".partial").glob("*")), "what could not be written is left behind"

    keeper = Keeper(store)
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(keeper.keep, encoded, (1, 0, 1))
        waiting = threading.Event()
        while not keeper.refusal and not kept.done():
            waiting.wait(0.01)
        assert "the disk is full" in str(keeper.refusal)
        ballast.unlink()
        row = kept.result(timeout=20)
    assert sorted(store.paths()) == sorted([row["path"], row["thumb_path"]])
    assert len(store.get(row["path"])) == row["bytes"]
    print("ok")


def fill(ballast: Path) -> None:
    """Write until nothing more fits."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 12, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


if __name__ == "__main__":
    main(Path(sys.argv[1]))

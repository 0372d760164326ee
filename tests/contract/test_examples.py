"""The examples in examples/ do what the docs say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_engine_is_a_library(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "engine.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    made = {path.name: Image.open(path).size for path in tmp_path.glob("*.png")}
    assert made == {"a red apple.png": (128, 128), "a red car.png": (128, 128)}

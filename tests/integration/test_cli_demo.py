"""farm demo --once: the front door, from nothing to pictures and back to nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.conftest import eventually
from tests.wholefarm import WholeFarm, free_port

# Its own batch but for the steps: what they add is time.
QUICK = """
import sys
from farm.cli import demo, main
whole = demo.read
demo.read = lambda path: {**whole(path), "steps": 4}
sys.argv[1:] = ["demo", "--once"]
main.main()
"""


def test_the_demo_makes_pictures_and_leaves_nothing_running(
    short_folder: Path, tmp_path: Path
) -> None:
    home = short_folder / "demo"
    inherited = {name: value for name, value in os.environ.items() if name[:5] != "FARM_"}
    done = subprocess.run(
        [sys.executable, "-c", QUICK],
        env={**inherited, "FARM_HOME": str(home), "FARM_PORT": str(free_port())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "farm-demo"
    images = [file for file in folder.glob("*.png") if file.name != "sheet.png"]
    assert len(images) == 48
    assert {Image.open(file).size for file in images} == {(128, 128)}
    sheet = Image.open(folder / "sheet.png")
    assert sheet.width > 12 * 128
    for word in ("images/min", "denoise", "Sys"):
        assert word in done.stdout
    eventually(lambda: not WholeFarm(home).everything(), within=20)

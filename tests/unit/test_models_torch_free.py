"""What lists checkpoints and plans memory does so without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('torch', 'diffusers', 'transformers')));"


@pytest.mark.parametrize(
    "module",
    [
        "farm.worker.models.header",
        "farm.worker.models.architecture",
        "farm.worker.models.catalogue",
        "farm.worker.models.betas",
        "farm.worker.memory.profiles",
        "farm.worker.memory.planner",
    ],
)
def test_imports_with_torch_blocked(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{BLOCKED} import {module}"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()

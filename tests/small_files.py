"""The smallest safetensors files."""

from __future__ import annotations

import json
from pathlib import Path


def small_file(path: Path, **metadata: str) -> Path:
    """A safetensors file with one tensor of one byte."""
    index = {"w": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "__metadata__": metadata}
    header = json.dumps(index).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\1")
    return path

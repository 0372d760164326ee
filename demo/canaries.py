"""Draws the canaries anew, for when the demo checkpoint was: ``python -m demo.canaries``."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from farm.worker import canary
from farm.worker.engine import Engine
from farm.worker.memory import profiles
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan

PATH = Path(__file__).parents[1] / "farm" / "data" / "canaries.json"


def main() -> None:
    device, profile = torch.device("cpu"), profiles.by_name("cpu")
    with Engine(ModelCache(scan([builtin_folder()]), profile, device), profile, device) as engine:
        rows = [[round(level) for level in fields] for fields in canary.make(engine)]
    lines = ",\n".join(f" {json.dumps(row, separators=(',', ':'))}" for row in rows)
    PATH.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()

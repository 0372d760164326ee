"""All the noise of one image, as webui 1.8 makes it."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import TypeAlias

import torch
from torch import Tensor

from farm.spec.sampling import NoiseOptions
from farm.worker.samplers.brownian import BrownianPath
from farm.worker.samplers.philox import normal
from farm.worker.samplers.program import Draw

Shape: TypeAlias = tuple[int, int, int]
Source: TypeAlias = Callable[[Shape], Tensor]
"""Standard normal noise, other numbers at every call. Float32, on the CPU."""

PARALLEL = 0.9995


def _cpu(seed: int) -> Source:
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def _nv(seed: int) -> Source:
    calls = 0

    def draw(shape: Shape) -> Tensor:
        nonlocal calls
        numbers = normal(seed, calls, shape[0] * shape[1] * shape[2])
        calls += 1
        return numbers.view(shape)

    return draw


_SOURCES: dict[str, Callable[[int], Source]] = {"CPU": _cpu, "NV": _nv}


class ImageNoise:
    """The noise of one image, from its own seed alone, so that no other image can change it.

    Args:
        shape: of the latent, [channels, height, width].
        seed: of the image.
        options: the source, and what is mixed in.
        levels: noise levels between which a sampler may ask for its Brownian path.
    """

    def __init__(
        self, shape: Shape, seed: int, options: NoiseOptions, levels: tuple[float, float]
    ) -> None:
        self._shape = shape
        self._seed = seed
        self._levels = levels
        self._source = _SOURCES[options.rng]
        self._fresh = self._source(seed)
        self._path: BrownianPath | None = None
        self.first = self._mixed(options)
        if options.eta_noise_seed_delta:
            self._fresh = self._source(seed + options.eta_noise_seed_delta)

    def draw(self, wanted: Draw) -> Tensor:
        """The noise that a step asks for; fresh noise is other noise each time."""
        if wanted.between is None:
            return self._fresh(self._shape)
        sigma, following = wanted.between
        low, high = self._levels
        if self._path is None:
            self._path = BrownianPath(
                low, high, seed=self._seed, noise=lambda seed: self._source(seed)(self._shape)
            )
        # The way from high to low is the path backwards.
        return self._path.increment(following, sigma) * (-1 / sqrt(sigma - following))

    def _mixed(self, options: NoiseOptions) -> Tensor:
        """The first noise: with its variation, and in the middle of another size."""
        from_height, from_width = options.seed_resize_from_height, options.seed_resize_from_width
        shape = self._shape
        if from_height and from_width:
            shape = (shape[0], from_height // 8, from_width // 8)
        resized = shape != self._shape
        noise = self._source(self._seed)(shape) if resized else self._fresh(shape)
        if options.variation_strength:
            other = self._source(options.variation_seed)(shape)
            noise = slerp(noise, other, options.variation_strength)
        return _centred(noise, self._fresh(self._shape)) if resized else noise


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """``share`` of the way from one noise to another, on the sphere (Shoemake 1985).

    As in webui every column of each channel is a vector of its own. Noises that hardly differ
    are mixed straight; webui swaps them then.

    Args:
        start, end: [channels, height, width].
    """
    towards = (start / start.norm(dim=1, keepdim=True)) * (end / end.norm(dim=1, keepdim=True))
    cosines = towards.sum(dim=1)
    if cosines.mean() > PARALLEL:
        return start * (1 - share) + end * share
    angles = torch.acos(cosines)
    whole = torch.sin(angles)
    first, second = torch.sin((1 - share) * angles) / whole, torch.sin(share * angles) / whole
    return first.unsqueeze(1) * start + second.unsqueeze(1) * end


def _centred(noise: Tensor, base: Tensor) -> Tensor:
    """``noise`` in the middle of ``base``, or its middle if it is the larger."""
    (to_y, from_y, height), (to_x, from_x, width) = (
        _overlap(base.shape[axis], noise.shape[axis]) for axis in (1, 2)
    )
    part = noise[:, from_y : from_y + height, from_x : from_x + width]
    base[:, to_y : to_y + height, to_x : to_x + width] = part
    return base


def _overlap(base: int, noise: int) -> tuple[int, int, int]:
    """Where noise goes in its base along one axis, where it is taken from, and how much."""
    margin = (base - noise) // 2
    return max(margin, 0), max(-margin, 0), noise if margin >= 0 else noise + 2 * margin

"""All the noise of one image, as webui 1.8 makes it."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from farm.spec.sampling import NoiseOptions
from farm.worker.samplers.brownian import BrownianPath, Numbers
from farm.worker.samplers.halving import Halving
from farm.worker.samplers.philox import normal
from farm.worker.samplers.program import Draw

Shape: TypeAlias = tuple[int, int, int]

PARALLEL = 0.9995


class Source(Protocol):
    """Standard normal noise, other numbers at every call."""

    def reseed(self, seed: int) -> None:
        """Begin anew with another seed: that is quicker than another source."""

    def fill(self, noise: Tensor) -> Tensor:
        """The same tensor, float32 on the CPU, with noise in it."""


class _Cpu:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def reseed(self, seed: int) -> None:
        self._generator.manual_seed(seed)

    def fill(self, noise: Tensor) -> Tensor:
        return noise.normal_(generator=self._generator)


class _Nv:
    def __init__(self, seed: int) -> None:
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        self._seed, self._calls = seed, 0

    def fill(self, noise: Tensor) -> Tensor:
        noise.flatten()[:] = normal(self._seed, self._calls, noise.numel())
        self._calls += 1
        return noise


_SOURCES: dict[str, Callable[[int], Source]] = {"CPU": _Cpu, "NV": _Nv}


class ImageNoise:
    """The noise of one image, from its own seed alone, so that no other image can change it.

    Args:
        shape: of the latent, [channels, height, width].
        seed: of the image.
        options: the source, and what is mixed in.
        halving: of its Brownian path, in the order in which steps ask for its parts.
    """

    def __init__(self, shape: Shape, seed: int, options: NoiseOptions, halving: Halving) -> None:
        self._shape = shape
        self._seed = seed
        self._halving = halving
        self._source = _SOURCES[options.rng]
        self._fresh = self._source(seed)
        self._path: BrownianPath | None = None
        self.first = self._mixed(options)
        if options.eta_noise_seed_delta:
            self._fresh = self._source(seed + options.eta_noise_seed_delta)

    def draw(self, wanted: Draw) -> Tensor:
        """The noise that the next step asks for."""
        if wanted.between is None:
            return self._drawn(self._fresh)
        sigma, following = wanted.between
        if self._path is None:
            self._path = BrownianPath(self._halving, seed=self._seed, noise=self._seeded())
        # Taken first: where there is no memory for it, the path has not gone on without it.
        noise = torch.empty(self._shape)
        # The way from high to low is the path backwards.
        np.multiply(self._path.increment(), -1 / sqrt(sigma - following), out=noise.numpy())
        return noise

    def _seeded(self) -> Callable[[int], Numbers]:
        source, noise = self._source(0), torch.empty(self._shape)
        numbers = noise.numpy()

        def draw(seed: int) -> Numbers:
            source.reseed(seed)
            source.fill(noise)
            return numbers

        return draw

    def _drawn(self, source: Source, shape: Shape | None = None) -> Tensor:
        return source.fill(torch.empty(shape or self._shape))

    def _mixed(self, options: NoiseOptions) -> Tensor:
        """The first noise: with its variation, and in the middle of another size."""
        from_height, from_width = options.seed_resize_from_height, options.seed_resize_from_width
        shape = self._shape
        if from_height and from_width:
            shape = (shape[0], from_height // 8, from_width // 8)
        resized = shape != self._shape
        noise = self._drawn(self._source(self._seed) if resized else self._fresh, shape)
        if options.variation_strength:
            other = self._drawn(self._source(options.variation_seed), shape)
            noise = slerp(noise, other, options.variation_strength)
        return _centred(noise, self._drawn(self._fresh)) if resized else noise


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

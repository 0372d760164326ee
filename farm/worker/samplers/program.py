"""What a sampler compiles to: a table of numbers that the engine can run beside other tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from farm.worker.samplers.algebra import A, B, C, Sum
from farm.worker.samplers.halving import Halving


class Draw(NamedTuple):
    """Standard normal noise that a step takes.

    Attributes:
        between: two noise levels, for the increment of the image's Brownian path between them,
            scaled to variance 1; None for fresh noise.
    """

    between: tuple[float, float] | None = None


FRESH = Draw()


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the model and the update after it.

    Attributes:
        sigma: noise level of the latent that the model sees, > 0.
        t: the training timestep of that noise level, fractional, 0..999.
        x: what the latent becomes.
        a, b, c: what the registers become, from what they all were.
        draw: the noise ``Z``; None for none.
        whole: ends a step that the user asked for; a second order step takes two calls.
    """

    sigma: float
    t: float
    x: Sum
    a: Sum = A
    b: Sum = B
    c: Sum = C
    draw: Draw | None = None
    whole: bool = True

    @property
    def update(self) -> tuple[tuple[float, ...], ...]:
        """[4, 7]: rows are the new ``X``, ``A``, ``B``, ``C``; columns as in :class:`Sum`."""
        return self.x.weights, self.a.weights, self.b.weights, self.c.weights

    @property
    def numbers(self) -> NDArray[np.float64]:
        """[2 + 4 * 7]: the noise level, the timestep, and the update row by row."""
        return np.array((self.sigma, self.t, *(w for row in self.update for w in row)))


class Start(NamedTuple):
    """How an image begins: ``latent + noise * first draw + churn * second draw``; the latent is 0
    where none is given.

    Attributes:
        noise: the noise level, as a multiple of standard normal noise.
        churn: what is added to it before the first call; None draws no second time.
    """

    noise: float
    churn: float | None = None


class Pilot(Protocol):
    """Decides about what three calls made, and adds calls to its program.

    Attributes:
        ended: there will be no more.
    """

    ended: bool

    def judge(self, error: float) -> float | None: ...


@dataclass(frozen=True)
class Program:
    """A sampler, a schedule and a number of steps, compiled. Jobs share it.

    Attributes:
        name: the sampler's name as people know it.
        steps: calls of the model, at least one; after the last the latent is clean, or as good
            as clean where the sampler's authors stop just above noise level 0.
        start: the latent before the first of them.
        levels: the lowest and highest noise level > 0 of the whole schedule, also where its
            beginning is skipped; between them the Brownian path of its noise runs.
        total: steps as the user counts them, without skipped ones.
        done: for each call, how many of them are done after it.
        pilot: decides further calls while the image is made; None where all are known.
    """

    name: str
    steps: Sequence[Step]
    start: Start
    levels: tuple[float, float]
    total: int
    done: Sequence[int]
    pilot: Pilot | None = None

    @cached_property
    def table(self) -> NDArray[np.float64]:
        """[calls, 2 + 4 * 7], the numbers of every step of a program without a pilot."""
        return np.stack([step.numbers for step in self.steps])

    @cached_property
    def halving(self) -> Halving:
        """Of the Brownian path that steps take their noise from."""
        draws = (step.draw.between for step in self.steps if step.draw and step.draw.between)
        return Halving(*self.levels, [(following, sigma) for sigma, following in draws])

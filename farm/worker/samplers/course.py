"""What a sampler is given: the noise levels to visit, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeAlias

from farm.worker.samplers.algebra import A, B, C, Sum
from farm.worker.samplers.model_sigmas import ModelSigmas
from farm.worker.samplers.program import Draw, Step


@dataclass(frozen=True, slots=True)
class Churn:
    """Noise that is added to a latent before a step (Karras et al. 2022, algorithm 2).

    Attributes:
        amount: in all, spread over the steps; 0 for none.
        low, high: the noise levels between which it is added.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = float("inf")

    def levels(self, sigmas: Sequence[float]) -> list[float]:
        """The noise level before each step, with its churn."""
        gamma = min(self.amount / (len(sigmas) - 1), sqrt(2) - 1)
        return [
            sigma * (1 + gamma) if self.low <= sigma <= self.high else sigma
            for sigma in sigmas[:-1]
        ]


@dataclass(frozen=True, slots=True)
class Course:
    """The way down.

    Attributes:
        sigmas: falling noise levels, the last mostly 0.
        model: whose they are.
        eta: share of the noise that an ancestral step would renew.
        s_noise: what fresh noise is multiplied with.
        churn: before each step, for the samplers that have it.
    """

    sigmas: Sequence[float]
    model: ModelSigmas
    eta: float = 1.0
    s_noise: float = 1.0
    churn: Churn = Churn()

    def step(
        self,
        sigma: float,
        x: Sum,
        *,
        a: Sum = A,
        b: Sum = B,
        c: Sum = C,
        draw: Draw | None = None,
        whole: bool = True,
    ) -> Step:
        """A call of the model at ``sigma``, told the timestep that belongs to it."""
        return Step(sigma, self.model.timestep(sigma), x, a, b, c, draw, whole)


Builder: TypeAlias = Callable[[Course], Iterator[Step]]


def ancestral(sigma: float, following: float, eta: float) -> tuple[float, float]:
    """The noise level to step down to, and the noise that leads back up to ``following``.

    With eta 1 the noise has the variance of the ancestral step of Ho et al. 2020
    (arXiv 2006.11239), ``up² = following² (sigma² - following²) / sigma²``; with eta between 0
    and 1 it is the one of Song et al. 2020 (arXiv 2010.02502).
    """
    renewed = eta * following * sqrt(sigma**2 - following**2) / sigma
    up = min(following, renewed)
    return sqrt(following**2 - up**2), up

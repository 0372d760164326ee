"""DPM-Solver with steps as long as its error allows; it decides them while it goes."""

from __future__ import annotations

from collections.abc import Iterator
from math import atan, exp, expm1, isfinite, log, sqrt

from farm.worker.samplers.algebra import A, B, D, X
from farm.worker.samplers.course import Course, ancestral
from farm.worker.samplers.program import Step

RELATIVE, ABSOLUTE = 0.05, 0.0078
"""Tolerances of a latent's numbers, as k-diffusion's."""

FIRST_LENGTH = 0.05
SAFETY = 0.81
NEAR = 1e-5


class DpmAdaptive:
    """DPM-Solver-23 (Lu et al. 2022, arXiv 2206.00927, appendix C), ancestral as k-diffusion.

    An attempt takes three calls, after which ``X`` is the third order result and ``C`` the second
    order one. How far they lie apart decides whether the attempt counts, and how long the next is.

    Attributes:
        steps: the calls decided so far; the latest attempt is at the end.
        done: for each of them, the share of the way before its attempt, times ``total``.
        ended: nothing is left to do.
    """

    def __init__(self, course: Course, total: int) -> None:
        self.steps: list[Step] = []
        self.done: list[int] = []
        self.ended = False
        self._course = course
        self._total = total
        low = course.sigmas[-2] if len(course.sigmas) > 2 else course.model.smallest
        self._begin, self._end = -log(course.sigmas[0]), -log(low)
        self._here = self._there = self._begin
        self._up = 0.0
        self._pace = _Pace(1.5 if course.eta else 3.0)
        if self._here < self._end - NEAR:
            self._attempt()
        else:  # an image that begins with its last step
            self.steps, self.done, self.ended = [course.step(course.sigmas[0], D)], [total], True

    def judge(self, error: float) -> float | None:
        """Decide on the latest attempt, and what to attempt next.

        Args:
            error: root mean square of the two results' difference, in tolerances.

        Returns:
            What the third order result becomes the latent with, as a multiple of fresh noise; or
            None where the attempt does not count and begins again from the latent it had.
        """
        if not isfinite(error):
            self.ended = True
            return 0.0
        if not self._pace.accepts(error):
            self._attempt()
            return None
        up, self._here = self._up, self._there
        if self._here < self._end - NEAR:
            self._attempt()
        else:
            self.ended = True
        return up

    def _attempt(self) -> None:
        course = self._course
        self._there = min(self._end, self._here + self._pace.length)
        sigma, following = exp(-self._here), exp(-self._there)
        down = max(ancestral(sigma, following, course.eta)[0], exp(-self._end))
        if not course.eta:
            down = following
        self._up = course.s_noise * sqrt(max(following**2 - down**2, 0.0))
        share = (self._here - self._begin) / (self._end - self._begin)
        calls = list(_calls(course, sigma, down))
        self.steps += calls
        self.done += [int(self._total * share)] * len(calls)


def _calls(course: Course, sigma: float, following: float) -> Iterator[Step]:
    """DPM-Solver-2 and -3 over the same span, sharing r₁ = 1/3; r₂ = 2/3."""
    h = log(sigma / following)
    s1, s2 = sigma * exp(-h / 3), sigma * exp(-2 * h / 3)
    e = (X - D) / sigma
    yield course.step(sigma, X - e * (s1 * expm1(h / 3)), a=X, b=e, whole=False)
    whole = A - B * (following * expm1(h))
    turn = (X - D) / s1 - B
    bend = expm1(2 * h / 3) / (2 * h / 3) - 1
    yield course.step(
        s1,
        A - B * (s2 * expm1(2 * h / 3)) - turn * (s2 * 2 * bend),
        b=B,
        a=whole,
        c=whole - turn * (following * 1.5 * expm1(h)),
        whole=False,
    )
    turn = (X - D) / s2 - B
    yield course.step(s2, A - turn * (following * 1.5 * (expm1(h) / h - 1)))


class _Pace:
    """The integrating controller of step lengths, limited as by Söderlind (2003)."""

    def __init__(self, order: float) -> None:
        self.length = FIRST_LENGTH
        self._power = 1 / order

    def accepts(self, error: float) -> bool:
        """Lengthen or shorten the next step by how good this one was; whether it counts."""
        factor = 1 + atan((1 / (error + 1e-8)) ** self._power - 1)
        self.length *= factor
        return factor >= SAFETY

"""What a slot shows the model in each call: its texts, and what their outputs add up to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from farm.errors import InvalidInput
from farm.spec.fields import MAX_GUIDANCE
from farm.spec.prompt.table import timeline
from farm.worker.engine.requests import Condition, Denoise
from farm.worker.models.text import TextEncoding


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """What one call of a slot is made of.

    The output is ``base + scale * sum(weight * (towards - away))``, where ``base`` is ``away``, or
    ``bare + edit_scale * (away - bare)`` of an edit (Brooks et al. 2022, equation 3).

    Attributes:
        towards: the parts of the prompt, of one length; a row of the forward each.
        weights: how much each counts.
        away: the negative prompt, one more row; None where it has no effect. Then the first part
            takes its place.
        scale: of guidance.
        rescale: share of the contrast added by it that is taken back.
        bare: the negative prompt without the picture to edit, one more row; None where there is
            no picture, or no guidance towards it.
        edit_scale: of guidance towards the picture.
    """

    towards: tuple[TextEncoding, ...]
    weights: tuple[float, ...]
    away: TextEncoding | None
    scale: float
    rescale: float
    bare: TextEncoding | None = None
    edit_scale: float = 1.0

    @property
    def rows(self) -> int:
        """Rows that the slot takes of the forward."""
        return len(self.towards) + (self.away is not None) + (self.bare is not None)


KEPT = 4
"""Mixes that a guide remembers; most images have one or two, or go round between a few."""


class Guide:
    """The mixes of one image, call by call. While nothing changes, or changes back within a few
    calls, the mix is the same object.

    Raises:
        InvalidInput: so much guidance that a latent would be no picture, finite or not.
    """

    def __init__(self, request: Denoise) -> None:
        _check(request.cfg_scale)
        self._request = request
        self._calls = timeline(request.sampler, request.steps - (request.skipped or 0)).steps
        self._weights = tuple(part.weight for part in request.prompt)
        self._longest = max(_length(part) for part in request.prompt)
        self._edits = request.edit is not None and request.edit.scale != 1
        self._known: dict[object, Mix] = {}
        parts = (*request.prompt, *([request.negative] if request.negative else []))
        # Most images show the model the same in every call, and are not asked for each.
        self._constant = request.guidance.constant and all(len(p.schedule) == 1 for p in parts)
        self._only: Mix | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of the prompt's parts, and of the negative prompt if there is one."""
        negative = self._request.negative
        return [self._longest, *([_length(negative)] if negative else [])]

    def rows(self, call: int, sigma: float) -> int:
        """How many rows of the forward a call takes; see :meth:`at`."""
        request = self._request
        guided = self._constant or request.guidance.guides(call, self._calls, sigma)
        if not guided or request.negative is None:
            return len(request.prompt)
        return len(request.prompt) + 1 + self._edits

    def at(self, call: int, sigma: float) -> Mix:
        """What a call is made of.

        Args:
            call: counted from 0.
            sigma: the noise level that the model sees.
        """
        if self._only is None or not self._constant:
            self._only = self._at(call, sigma)
        return self._only

    def _at(self, call: int, sigma: float) -> Mix:
        request = self._request
        guided = request.guidance.guides(call, self._calls, sigma)
        rows = tuple(part.row(call) for part in request.prompt)
        away = request.negative.row(call) if request.negative and guided else None
        key = (guided, rows, away)
        if key not in self._known:
            if len(self._known) == KEPT:
                self._known.clear()
            self._known[key] = self._mix(rows, away, guided=guided)
        return self._known[key]

    def _mix(self, rows: tuple[int, ...], away: int | None, *, guided: bool) -> Mix:
        request = self._request
        parts = zip(request.prompt, rows, strict=True)
        negative = None
        if request.negative and away is not None:
            negative = _row(request.negative, away)
        edit = request.edit if negative and self._edits else None
        return Mix(
            towards=tuple(self._as_long_as_others(_row(part, row)) for part, row in parts),
            weights=self._weights,
            away=negative,
            scale=request.cfg_scale if guided else 1.0,
            rescale=request.guidance.cfg_rescale if guided else 0.0,
            bare=negative if edit else None,
            edit_scale=edit.scale if edit else 1.0,
        )

    def _as_long_as_others(self, text: TextEncoding) -> TextEncoding:
        """Filled up with its last vector, as webui does with parts of unequal length."""
        missing = self._longest - text.tokens.shape[1]
        if not missing:
            return text
        last = text.tokens[:, -1:].expand(-1, missing, -1)
        return TextEncoding(torch.cat([text.tokens, last], dim=1), text.pooled, text.score)


def _check(cfg_scale: float) -> None:
    if not 0 <= cfg_scale <= MAX_GUIDANCE:
        raise InvalidInput(
            f"Guidance of {cfg_scale:g} leaves no picture.",
            field="cfg_scale",
            value=cfg_scale,
            remedy=f"Use 0 to {MAX_GUIDANCE:g}.",
        )


def _length(condition: Condition) -> int:
    return condition.texts.value.tokens.shape[1]


def _row(condition: Condition, row: int) -> TextEncoding:
    texts = condition.texts.value
    only = slice(row, row + 1)
    pooled = None if texts.pooled is None else texts.pooled[only]
    return TextEncoding(texts.tokens[only], pooled, texts.score)

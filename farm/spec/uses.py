"""What the seconds of a card are spent on; each second is exactly one of these."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Use: TypeAlias = Literal[
    "denoise",
    "encode",
    "decode",
    "load",
    "failed",
    "cancelled",
    "preempted",
    "waiting",
    "policy",
]
"""Of attempts that made an image: ``denoise``, ``encode`` (texts and pictures, and models that
enlarge these), ``decode`` and ``load``; a load that was ordered counts there too. All work of
other attempts is ``failed``, ``cancelled``, or ``preempted`` where it was given back to begin anew.
``waiting`` is for work; ``policy`` is idle because people or the farm want that: draining,
quarantine."""

USES: tuple[Use, ...] = get_args(Use)

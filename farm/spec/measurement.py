"""What work on a device was measured to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Work: TypeAlias = Literal["denoise", "decode"]


@dataclass(frozen=True, slots=True)
class Call:
    """Calls of a model that take as long, and as much memory, as each other on one kind of card.

    Attributes:
        work: ``denoise``, a forward of the UNet, or ``decode``, of the VAE, in either direction,
            or of a tile by a model that enlarges pictures.
        family: of the checkpoint, or of that model.
        parameters: of the UNet, the VAE or that model, as a family has small members too.
        dtype: what it computes in.
        mode: how: the attention's name, and ``+streamed`` where weights come from host memory;
            for a decode ``whole``, ``tiles`` or ``taesd``, and for a picture on its way to a
            latent ``encode`` or ``encode-tiles``; for a tile ``enlarge x4``.
        pixels: of the image, or of the tile before.
        rows: of the forward; 1 for a decode.
    """

    work: Work
    family: str
    parameters: int
    dtype: str
    mode: str
    pixels: int
    rows: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is known of a call.

    Attributes:
        seconds: of one, the quickest of late; None while too few were timed.
        bytes: most device memory that one took beyond what was held before; None where that
            cannot be told, as on a CPU.
        outside: of the device's memory, what is taken past torch: by its context and by others.
        failed: whether memory ran out.
    """

    call: Call
    seconds: float | None = None
    bytes: int | None = None
    outside: int | None = None
    failed: bool = False

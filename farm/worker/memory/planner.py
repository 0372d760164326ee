"""How many UNet rows fit on a card: predicted before anything runs, corrected by what ran.

The peak is ``weights + max(UNet, VAE) + workspaces``; activations of the UNet grow with rows and
pixels, those of the VAE with pixels. The constants were computed by tracking live storages on
``meta`` and agree within 1.5 % with four published and measured peaks of float16 and float32
runs on CUDA. What a card took in fact goes before them: a call that was measured is predicted as
it was; others by the formula times the ratio that like ones have shown, and never lower than a
smaller call took.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median_high

from farm.spec.measurement import Call
from farm.worker.memory.experience import Experience
from farm.worker.memory.pictures import (
    MIB,
    VAE_PICTURE,
    decode_mode,
    decoded,
    encoded,
    enlarged,
    vae_dtype,
    whole_pixels,
    width_of,
)
from farm.worker.memory.profiles import GIB, PIXELS_1024, MemoryProfile
from farm.worker.memory.weights import family_weights

UNET_ROW = {
    "sd15": 260 * MIB,
    "sd2": 260 * MIB,
    "sdxl": 158 * MIB,
    "sdxl-refiner": 189 * MIB,
    "ssd1b": 158 * MIB,
}
"""Activations of one row at 1024x1024 in float16."""
WORKSPACE, WORKSPACE_SHARE = 0.15 * GIB, 0.22
RESERVE_SHARE, RESERVE = 1.09, 0.1 * GIB
CONTEXT = 0.5 * GIB
GUIDED_ROWS = 2


@dataclass(frozen=True)
class Learnt:
    """What was measured of one checkpoint's calls.

    Attributes:
        unet, vae: how its calls go by; pixels and rows are those asked about.
    """

    unet: Call
    vae: Call
    experience: Experience = field(default_factory=Experience)


@dataclass(frozen=True)
class Recorded:
    """Device memory that recorded forwards hold, and lend to nothing else.

    Attributes:
        own: those of the checkpoint asked about. They share it, so it is that of the largest one.
        others: those of all other checkpoints.
    """

    own: int = 0
    others: int = 0


def rows_allowed(
    profile: MemoryProfile,
    family: str,
    width: int,
    height: int,
    *,
    weights_bytes: int | None = None,
    learnt: Learnt | None = None,
    recorded: Recorded | None = None,
    encodes: bool = False,
) -> int:
    """Most UNet rows of one forward at ``width`` x ``height`` pixels: a bucket, or 0.

    Args:
        family: a key of :data:`farm.worker.memory.weights.PARAMETERS`.
        weights_bytes: bytes of all resident weights where known; else those of one checkpoint
            of the family.
        encodes: whether a picture of that size is encoded, too.
    """
    pixels = width * height
    worth = profile.rows_at_1024 * PIXELS_1024 // pixels
    limit = max(GUIDED_ROWS, worth)
    for rows in reversed(profile.buckets):
        if rows <= limit:
            peak = peak_bytes(
                profile,
                family,
                pixels,
                rows,
                weights_bytes=weights_bytes,
                learnt=learnt,
                recorded=recorded,
                encodes=encodes,
            )
            if peak <= profile.memory_bytes:
                return rows
    return 0


def peak_bytes(
    profile: MemoryProfile,
    family: str,
    pixels: int,
    rows: int,
    *,
    weights_bytes: int | None = None,
    learnt: Learnt | None = None,
    beside: int = 0,
    recorded: Recorded | None = None,
    encodes: bool = False,
) -> int:
    """Predicted peak that the process takes from the device, context included.

    Args:
        beside: pixels of a picture that is decoded at the same time, on a stream of its own.
        recorded: what recordings hold, of which this forward will be one; None where none are
            made. What is not recorded yet, or never is, needs its memory besides.
        encodes: whether a picture of so many pixels is encoded, too.
    """
    weights = family_weights(profile, family) if weights_bytes is None else weights_bytes
    forward = denoise_bytes(profile, family, pixels, rows, learnt=learnt)
    recordings = max(recorded.own, forward) + recorded.others if recorded else 0
    if beside:
        forward += decode_bytes(profile, beside, learnt=learnt)
    activations = max(forward, decode_bytes(profile, pixels, learnt=learnt))
    if encodes:
        activations = max(activations, encode_bytes(profile, pixels, learnt=learnt))
    return int(_reserved(weights, activations, learnt.experience if learnt else None) + recordings)


def denoise_bytes(
    profile: MemoryProfile, family: str, pixels: int, rows: int, *, learnt: Learnt | None = None
) -> float:
    """What a forward takes beyond the weights."""

    def predicted(pixels: int, rows: int) -> float:
        return _worked(UNET_ROW[family] * pixels / PIXELS_1024 * rows, profile.dtype)

    if learnt is None:
        return predicted(pixels, rows)
    call = replace(learnt.unet, pixels=pixels, rows=rows)
    return _corrected(learnt.experience, call, predicted)


def decode_bytes(profile: MemoryProfile, pixels: int, *, learnt: Learnt | None = None) -> float:
    """What the decoding of one picture takes beyond the weights, in the precision that pictures
    begin in."""
    dtype = learnt.vae.dtype if learnt else vae_dtype(profile)
    mode = decode_mode(profile, pixels, dtype)

    def predicted(pixels: int, _: int) -> float:
        return _worked(decoded(profile, pixels, mode), dtype)

    if learnt is None:
        return predicted(pixels, 1)
    return _corrected(learnt.experience, replace(learnt.vae, mode=mode, pixels=pixels), predicted)


def encode_bytes(profile: MemoryProfile, pixels: int, *, learnt: Learnt | None = None) -> float:
    """What the encoding of one picture takes beyond the weights, as :func:`decode_bytes`."""
    dtype = learnt.vae.dtype if learnt else vae_dtype(profile)
    mode = encode_mode(profile, pixels, dtype)

    def predicted(pixels: int, _: int) -> float:
        return _worked(encoded(profile, pixels, mode), dtype)

    if learnt is None:
        return predicted(pixels, 1)
    return _corrected(learnt.experience, replace(learnt.vae, mode=mode, pixels=pixels), predicted)


def encode_mode(profile: MemoryProfile, pixels: int, dtype: str) -> str:
    """How a picture of this size is encoded: ``encode`` or ``encode-tiles``."""
    return "encode" if pixels <= encode_pixels(profile, dtype) else "encode-tiles"


def encode_pixels(profile: MemoryProfile, dtype: str) -> int:
    """Most pixels of a picture that is encoded as a whole.

    No more than fit beside all the weights that the profile may ever hold, by the formula alone: a
    latent is the same whatever was learnt.
    """
    spare = profile.memory_bytes - _reserved(profile.weights_bytes, 0, None)
    fit = spare / RESERVE_SHARE / _worked(VAE_PICTURE, dtype) * PIXELS_1024
    return min(max(0, int(fit)), whole_pixels(profile, dtype))


def last_modes(profile: MemoryProfile, pixels: int, dtype: str) -> tuple[str, str]:
    """How a picture of this size is decoded, and encoded, where memory is as short as can be."""
    if pixels > profile.vae_tile**2:
        return "tiles", "encode-tiles"
    return decode_mode(profile, pixels, dtype), encode_mode(profile, pixels, dtype)


def enlarge_bytes(call: Call, scale: int, *, experience: Experience | None = None) -> float:
    """What one tile takes of a model that enlarges pictures, beyond all weights.

    Args:
        call: how it is measured, of a tile's pixels.
    """

    def predicted(pixels: int, _: int) -> float:
        return _worked(enlarged(pixels, scale), call.dtype)

    if experience is None:
        return predicted(call.pixels, 1)
    return _corrected(experience, call, predicted)


def enlarge_peak(
    call: Call, scale: int, *, weights_bytes: int, experience: Experience | None = None
) -> int:
    """Predicted peak that the process takes from the device while a tile is enlarged, context
    included.

    Args:
        weights_bytes: of all that lies on the device, the model that enlarges included.
    """
    taken = enlarge_bytes(call, scale, experience=experience)
    return int(_reserved(weights_bytes, taken, experience))


def _reserved(weights: int, activations: float, experience: Experience | None) -> float:
    """What the process takes from the device for weights and activations, context included."""
    context = (experience.outside if experience else None) or CONTEXT
    return (weights + WORKSPACE + activations) * RESERVE_SHARE + RESERVE + context


def _worked(half: float, dtype: str) -> float:
    """Bytes that work takes in a precision whose activations take ``half`` in float16."""
    return half * width_of(dtype) / 2 * (1 + WORKSPACE_SHARE)


def _corrected(experience: Experience, call: Call, predicted: Callable[[int, int], float]) -> float:
    """What a call takes, by what it and like ones took."""
    own = experience.of(call).bytes
    if own is not None:
        return own
    known = [(one.call, one.bytes) for one in experience.like(call) if one.bytes is not None]
    if not known:
        return predicted(call.pixels, call.rows)
    ratio = median_high(bytes / predicted(one.pixels, one.rows) for one, bytes in known)
    smaller = (bytes for one, bytes in known if one.pixels <= call.pixels and one.rows <= call.rows)
    return max(ratio * predicted(call.pixels, call.rows), *smaller, 0)

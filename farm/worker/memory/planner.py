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
from farm.worker.memory.profiles import GIB, PIXELS_512, PIXELS_1024, MemoryProfile

MIB = 2**20
UNET_ROW = {
    "sd15": 260 * MIB,
    "sd2": 260 * MIB,
    "sdxl": 158 * MIB,
    "sdxl-refiner": 189 * MIB,
    "ssd1b": 158 * MIB,
}
"""Activations of one row at 1024x1024 in float16."""
VAE_IMAGE = 1536 * MIB
"""Activations of decoding one 1024x1024 image in float16, not tiled."""
VAE_TILE, VAE_TILED_IMAGE = 378 * MIB, 11 * MIB
"""Decoding in tiles: one of 512x512, and the picture put together, per 1024x1024."""
TAESD_IMAGE = 384 * MIB
"""Decoding one 1024x1024 image by TAESD."""
VAE_PICTURE = 1280 * MIB
"""Activations of encoding one 1024x1024 picture in float16, not tiled."""
VAE_PICTURE_TILE, VAE_TILED_PICTURE = 320 * MIB, 7 * MIB
"""Encoding in tiles: one of 512x512, and the whole picture beside it, per 1024x1024."""
PARAMETERS = {
    "sd15": 1_066_200_000,
    "sd2": 1_290_000_000,
    "sdxl": 3_468_800_000,
    "sdxl-refiner": 3_037_800_000,
    "ssd1b": 2_232_700_000,
}
TEXT_PARAMETERS = {
    "sd15": 123_100_000,
    "sd2": 340_400_000,
    "sdxl": 817_700_000,
    "sdxl-refiner": 694_700_000,
    "ssd1b": 817_700_000,
}
VAE_PARAMETERS = 83_700_000
STREAM_WINDOW = 2 * 128 * MIB
"""Device memory for weights on their way, of a UNet that is streamed: two units, see
:mod:`farm.worker.models.offload`."""

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
        family: a key of :data:`PARAMETERS`.
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
    return int(_reserved(weights, activations, learnt) + recordings)


def denoise_bytes(
    profile: MemoryProfile, family: str, pixels: int, rows: int, *, learnt: Learnt | None = None
) -> float:
    """What a forward takes beyond the weights."""

    def predicted(pixels: int, rows: int) -> float:
        return _worked(profile, UNET_ROW[family] * pixels / PIXELS_1024 * rows)

    if learnt is None:
        return predicted(pixels, rows)
    call = replace(learnt.unet, pixels=pixels, rows=rows)
    return _corrected(learnt.experience, call, predicted)


def decode_bytes(profile: MemoryProfile, pixels: int, *, learnt: Learnt | None = None) -> float:
    """What the decoding of one picture takes beyond the weights."""

    def predicted(pixels: int, _: int) -> float:
        return _worked(profile, _vae_bytes(profile, pixels))

    if learnt is None:
        return predicted(pixels, 1)
    call = replace(learnt.vae, mode=vae_mode(profile, pixels), pixels=pixels)
    return _corrected(learnt.experience, call, predicted)


def encode_bytes(profile: MemoryProfile, pixels: int, *, learnt: Learnt | None = None) -> float:
    """What the encoding of one picture takes beyond the weights."""
    mode = encode_mode(profile, pixels)

    def predicted(pixels: int, _: int) -> float:
        images = pixels / PIXELS_1024
        if mode == "encode":
            return _worked(profile, VAE_PICTURE * images)
        tile = VAE_PICTURE_TILE * profile.vae_tile**2 / PIXELS_512
        return _worked(profile, tile + VAE_TILED_PICTURE * images)

    if learnt is None:
        return predicted(pixels, 1)
    call = replace(learnt.vae, mode=mode, pixels=pixels)
    return _corrected(learnt.experience, call, predicted)


def encode_mode(profile: MemoryProfile, pixels: int) -> str:
    """How a picture of this size is encoded: ``encode`` or ``encode-tiles``.

    In tiles where whole it does not fit beside all the weights that the profile may ever hold, by
    the formula alone: a latent is the same whatever was learnt.
    """
    whole = _worked(profile, VAE_PICTURE * pixels / PIXELS_1024)
    fits = _reserved(profile.weights_bytes, whole, None) <= profile.memory_bytes
    return "encode" if fits and pixels <= profile.vae_tile_over else "encode-tiles"


def vae_mode(profile: MemoryProfile, pixels: int) -> str:
    """How a picture of this size is decoded: ``whole``, ``tiles`` or ``taesd``."""
    if profile.vae == "taesd":
        return "taesd"
    return "tiles" if pixels > profile.vae_tile_over else "whole"


def family_weights(profile: MemoryProfile, family: str) -> int:
    """Resident bytes of a full-size checkpoint of ``family``."""
    width = 4 if profile.dtype == "float32" else 2
    whole = PARAMETERS[family] * width
    if profile.offload == "none":
        return whole
    unet_and_vae = whole - TEXT_PARAMETERS[family] * width
    if profile.offload == "streamed" and unet_and_vae > profile.weights_bytes:
        return VAE_PARAMETERS * width + STREAM_WINDOW
    return unet_and_vae


def _reserved(weights: int, activations: float, learnt: Learnt | None) -> float:
    """What the process takes from the device for weights and activations, context included."""
    context = (learnt.experience.outside if learnt else None) or CONTEXT
    return (weights + WORKSPACE + activations) * RESERVE_SHARE + RESERVE + context


def _vae_bytes(profile: MemoryProfile, pixels: int) -> float:
    images = pixels / PIXELS_1024
    match vae_mode(profile, pixels):
        case "taesd":
            return TAESD_IMAGE * images
        case "tiles":
            return VAE_TILE * profile.vae_tile**2 / PIXELS_512 + VAE_TILED_IMAGE * images
        case _:
            return VAE_IMAGE * images


def _worked(profile: MemoryProfile, half: float) -> float:
    """Bytes that work takes whose activations take ``half`` in float16."""
    return half * (4 if profile.dtype == "float32" else 2) / 2 * (1 + WORKSPACE_SHARE)


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

"""Memory profiles: how a checkpoint is held and run on a card of a given size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from farm.errors import InvalidInput

GIB = 2**30
PIXELS_512, PIXELS_1024, PIXELS_1536 = 512**2, 1024**2, 1536**2


@dataclass(frozen=True)
class MemoryProfile:
    """What the loader, the engine and the decoder obey on one kind of device.

    Attributes:
        name: as people choose it: ``24gb``, ``12gb``, ``8gb``, ``4gb`` or ``cpu``.
        dtype: torch name of the precision of UNet and text encoders.
        vae_dtype: torch name of the decoder's first precision; ``auto`` starts at ``dtype``.
            Either way a decode that overflows climbs to bfloat16, then float32.
        memory_bytes: what the device has in all.
        weights_bytes: budget of the resident checkpoints together.
        rows_at_1024: UNet rows worth running together at 1024x1024 (an image with guidance
            is two rows); more at smaller sizes, in proportion to the pixels.
        max_rows: most rows in one forward at any size.
        buckets: row counts a forward is padded to, ascending, ending at ``max_rows``.
        vae_tile_over: pixels above which the VAE decodes in tiles.
        vae_tile: side of a tile in pixels, a multiple of 64.
        vae: ``full``, or ``taesd``: the tiny decoder of previews makes the pictures too.
        offload: ``none``; ``model``: text encoders stay in host memory, and lend their weights
            layer by layer; ``streamed``: so does the UNet of a checkpoint that is larger than
            ``weights_bytes`` otherwise.
        attention: how attention is computed, see :mod:`farm.worker.models.attention`.
        channels_last: whether convolutions' weights lie channels last, as cuDNN likes them.
        fp16_accumulation: whether float16 matrix products add up in float16, where the card can:
            quicker on GeForce cards from Turing on, and less exact.
        cuda_graphs: whether forwards are recorded and replayed, see
            :mod:`farm.worker.models.graphs`. Their memory is then not lent to anything else.
        compile: ``none``, or ``regional``: blocks of the UNet are compiled in the background, see
            :mod:`farm.worker.models.compiled`.
        slots: jobs in flight at once.
        lookahead: jobs sent ahead of a free slot, so that the device never waits for one.
    """

    name: str
    dtype: str
    vae_dtype: str
    memory_bytes: int
    weights_bytes: int
    rows_at_1024: int
    max_rows: int
    buckets: tuple[int, ...]
    vae_tile_over: int
    offload: str
    slots: int
    lookahead: int
    vae_tile: int = 512
    vae: str = "full"
    attention: str = "sdpa"
    channels_last: bool = True
    fp16_accumulation: bool = False
    cuda_graphs: bool = False
    compile: str = "none"


# A card of "24 GB" offers torch a little less; the numbers here are what such cards do offer.
_24GB = MemoryProfile(
    name="24gb",
    dtype="float16",
    vae_dtype="auto",
    memory_bytes=int(23.0 * GIB),
    weights_bytes=int(13.5 * GIB),
    rows_at_1024=16,
    max_rows=32,
    buckets=(1, 2, 4, 8, 16, 32),
    vae_tile_over=PIXELS_1536,
    offload="none",
    slots=16,
    lookahead=16,
)
_12GB = replace(
    _24GB,
    name="12gb",
    memory_bytes=int(11.5 * GIB),
    weights_bytes=int(7.0 * GIB),
    rows_at_1024=8,
    max_rows=16,
    buckets=(1, 2, 4, 8, 16),
    vae_tile_over=PIXELS_1024,
    slots=8,
    lookahead=8,
)
_8GB = replace(
    _12GB,
    name="8gb",
    memory_bytes=int(7.6 * GIB),
    weights_bytes=int(5.2 * GIB),
    rows_at_1024=4,
    max_rows=8,
    buckets=(1, 2, 4, 8),
    vae_tile_over=PIXELS_512,
    offload="model",
    slots=4,
    lookahead=4,
)
_4GB = replace(
    _8GB,
    name="4gb",
    memory_bytes=int(3.7 * GIB),
    weights_bytes=int(2.2 * GIB),
    rows_at_1024=2,
    max_rows=4,
    buckets=(1, 2, 4),
    offload="streamed",
    slots=2,
    lookahead=2,
)
# Measured with the demo checkpoint on two cores: a row costs 31 ms alone, 13 among 8, 10 among
# 12 or 16 and no less among 32; padding costs what rows do, hence the finer buckets.
_CPU = MemoryProfile(
    name="cpu",
    dtype="float32",
    vae_dtype="auto",
    memory_bytes=16 * GIB,
    weights_bytes=9 * GIB,
    rows_at_1024=2,
    max_rows=16,
    buckets=(1, 2, 4, 6, 8, 12, 16),
    vae_tile_over=PIXELS_1024,
    offload="none",
    slots=8,
    lookahead=8,
)
PROFILES = (_24GB, _12GB, _8GB, _4GB, _CPU)


def by_name(name: str) -> MemoryProfile:
    """The built-in profile called ``name``; raises :class:`InvalidInput` for any other."""
    for profile in PROFILES:
        if profile.name == name:
            return profile
    raise InvalidInput(
        f"There is no memory profile {name!r}.",
        field="profile",
        value=name,
        remedy=f"Choose one of {', '.join(profile.name for profile in PROFILES)}, or a .yaml file.",
    )


def choose(device: str, total_bytes: int) -> MemoryProfile:
    """The largest built-in profile that a device carries, its budgets grown to the device.

    Args:
        device: torch device name, ``cpu`` or ``cuda...``.
        total_bytes: memory of the card, or of the machine for ``cpu``.
    """
    if device == "cpu":
        return scaled(_CPU, total_bytes)
    cards = (profile for profile in PROFILES if profile is not _CPU)
    return scaled(
        next((card for card in cards if card.memory_bytes <= total_bytes), _4GB), total_bytes
    )


def scaled(profile: MemoryProfile, total_bytes: int) -> MemoryProfile:
    """``profile`` on a device of ``total_bytes``: the weights keep their share of it."""
    share = profile.weights_bytes / profile.memory_bytes
    return replace(profile, memory_bytes=total_bytes, weights_bytes=int(total_bytes * share))

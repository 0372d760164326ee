"""Memory profiles: how a checkpoint is held and run on a card of a given size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from farm.errors import InvalidInput

GIB = 2**30


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
        vae_tile_over: pixels above which the VAE decodes in tiles of 512.
        offload: ``model`` keeps the text encoders in host memory between uses.
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


def by_name(name: str) -> MemoryProfile:
    """The built-in profile called ``name``; raises :class:`InvalidInput` for any other."""
    raise NotImplementedError


def choose(device: str, total_bytes: int) -> MemoryProfile:
    """The largest built-in profile that a device of ``total_bytes`` carries.

    Args:
        device: torch device name, ``cpu`` or ``cuda...``.
        total_bytes: memory of the card, or of the machine for ``cpu``.
    """
    raise NotImplementedError

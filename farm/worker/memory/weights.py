"""What the weights of full-size checkpoints take, by family."""

from __future__ import annotations

from farm.worker.memory.pictures import MIB, vae_dtype, width_of
from farm.worker.memory.profiles import MemoryProfile

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


def family_weights(profile: MemoryProfile, family: str) -> int:
    """Resident bytes of a full-size checkpoint of ``family``, a key of :data:`PARAMETERS`."""
    width = width_of(profile.dtype)
    vae = VAE_PARAMETERS * width_of(vae_dtype(profile))
    unet_and_vae = (PARAMETERS[family] - TEXT_PARAMETERS[family] - VAE_PARAMETERS) * width + vae
    if profile.offload == "none":
        return unet_and_vae + TEXT_PARAMETERS[family] * width
    if profile.offload == "streamed" and unet_and_vae > profile.weights_bytes:
        return vae + STREAM_WINDOW
    return unet_and_vae

"""Kinds of assets, and the folders that hold them: webui's layout, and ComfyUI's names for it."""

from __future__ import annotations

import os
from pathlib import Path

CHECKPOINT = "checkpoint"
LORA = "lora"
EMBEDDING = "embedding"
VAE = "vae"
PREVIEW = "preview"
UPSCALER = "upscaler"
CONTROLNET = "controlnet"
HYPERNETWORK = "hypernetwork"

KINDS = (CHECKPOINT, LORA, EMBEDDING, VAE, PREVIEW, UPSCALER, CONTROLNET, HYPERNETWORK)

FOLDERS = {
    "stable-diffusion": CHECKPOINT,
    "checkpoints": CHECKPOINT,
    "lora": LORA,
    "loras": LORA,
    "lycoris": LORA,
    "embeddings": EMBEDDING,
    "vae": VAE,
    "vae-approx": PREVIEW,
    "vae_approx": PREVIEW,
    "esrgan": UPSCALER,
    "realesrgan": UPSCALER,
    "upscale_models": UPSCALER,
    "swinir": UPSCALER,
    "scunet": UPSCALER,
    "dat": UPSCALER,
    "hat": UPSCALER,
    "controlnet": CONTROLNET,
    "hypernetworks": HYPERNETWORK,
}
"""Folder name in lower case to the kind of what is in it."""

MAIN_FOLDERS = {
    CHECKPOINT: "Stable-diffusion",
    LORA: "Lora",
    EMBEDDING: "embeddings",
    VAE: "VAE",
    PREVIEW: "VAE-approx",
    UPSCALER: "ESRGAN",
    CONTROLNET: "ControlNet",
    HYPERNETWORK: "hypernetworks",
}
"""Kind to the folder that a file added to a model folder goes into."""

PICKLED = frozenset({".ckpt", ".pt", ".pth", ".bin"})
SUFFIX = ".safetensors"
CONFIG_SUFFIX = ".config"
VAE_SUFFIX = ".vae.safetensors"
"""What a VAE that lies beside its checkpoint is called after the checkpoint's own name."""

# Published embeddings and upscalers are mostly pickles. They are read by torch's restricted
# unpickler, which builds tensors and plain containers and calls nothing else.
RESTRICTED = {EMBEDDING: frozenset({".pt", ".bin"}), UPSCALER: frozenset({".pth", ".pt"})}


def kind_folders(root: Path) -> dict[Path, str]:
    """The folders of ``root`` whose names say what is in them.

    A model folder holds them itself; of webui's own folder, ``models`` does, and ``embeddings``
    stands beside it.
    """
    inner = root / "models"
    places = [root, inner] if any(_named(inner).values()) else [root]
    return {folder: kind for place in places for folder, kind in _named(place).items()}


def is_webui(root: Path) -> bool:
    """Whether ``root`` is webui's own folder, whose other folders hold no models."""
    return CHECKPOINT in _named(root / "models").values()


def _named(place: Path) -> dict[Path, str]:
    try:
        inner = sorted(path for path in place.iterdir() if os.path.isdir(path))
    except OSError:
        return {}
    return {path: FOLDERS[path.name.lower()] for path in inner if path.name.lower() in FOLDERS}

"""VAE files: where a checkpoint's own lies, and what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from farm.errors import CheckpointError
from farm.worker.models.architecture import VAE, read_config
from farm.worker.models.header import Header, damaged
from farm.worker.models.kinds import SUFFIX, VAE_SUFFIX

BARE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
NONE = ("", "None", "Automatic")


def external_vae(checkpoint: Path, vaes: Iterable[Path] = ()) -> Path | None:
    """The VAE file that people have put beside a checkpoint for it, as webui reads it.

    First the one named by ``vae`` in ``<stem>.json``, looked for in ``vaes`` and in the
    checkpoint's own folder; then ``<stem>.vae.safetensors``. It goes before the VAE inside the
    file.

    Args:
        checkpoint: the file or diffusers folder.
        vaes: the VAE files of the model folders.

    Raises:
        CheckpointError: ``<stem>.json`` is broken, or names a file that is not there.
    """
    base = checkpoint.name.removesuffix(SUFFIX)
    notes = checkpoint.with_name(f"{base}.json")
    named = str(read_config(notes).get("vae") or "") if os.path.isfile(notes) else ""
    if named not in NONE:
        return _find(notes, named, [*vaes, *sorted(checkpoint.parent.glob(f"*{SUFFIX}"))])
    beside = checkpoint.with_name(f"{base}{VAE_SUFFIX}")
    return beside if os.path.isfile(beside) else None


def vae_names(header: Header) -> tuple[str, ...]:
    """The tensors of a VAE file that belong to the VAE, by whichever names they go.

    Raises:
        CheckpointError: there are none.
    """
    for prefixes in ((VAE,), BARE):
        names = tuple(name for name in header.tensors if name.startswith(prefixes))
        if names:
            return names
    raise damaged(header.path, "holds no VAE", "Give a VAE in .safetensors.")


def has_new_names(header: Header) -> bool:
    """Whether a VAE file goes by diffusers' names rather than those of the training code."""
    return any(".down_blocks." in name for name in header.tensors)


def lacks_vae(checkpoint: Path) -> CheckpointError:
    """The error for a checkpoint without a VAE where none is given."""
    base = checkpoint.name.removesuffix(SUFFIX)
    return damaged(
        checkpoint,
        "holds no VAE",
        f"Put one beside it as {base}{VAE_SUFFIX}, or name one of the VAE folder as vae in "
        f"{base}.json.",
    )


def _find(notes: Path, name: str, files: Sequence[Path]) -> Path:
    for path in files:
        if path.name in (name, f"{name}{SUFFIX}"):
            return path
    raise damaged(
        notes,
        f"asks for the VAE {name!r}, and there is no such file",
        "Put it into the VAE folder as .safetensors, or take it out of the notes.",
    )

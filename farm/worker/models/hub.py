"""Checkpoints of the Hugging Face hub, through its own cache. Only ever used by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from farm.errors import CheckpointError
from farm.worker.models.architecture import MODEL_INDEX
from farm.worker.models.kinds import SUFFIX

PREFIX = "hub:"
REFERENCE = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:/([\w./ ()+-]+\.safetensors))?")
PARTS = ("unet/", "vae/", "text_encoder/", "text_encoder_2/", "scheduler/")
HALF = ".fp16"
SHARD = re.compile(r"-\d{5}-of-\d{5}")
SHOWN_NAMES = 5
TIMEOUT_SECONDS = 20.0


def is_hub(name: str) -> bool:
    """Whether a checkpoint's name asks for one of the hub."""
    return name.startswith(PREFIX)


def fetch(reference: str) -> Path:
    """A checkpoint of the hub on this machine's disk, downloaded if need be.

    Only configs and safetensors are downloaded, and of two variants the half-precision one. What
    is in the hub's cache (``HF_HOME``) is used where the hub is out of reach.

    Args:
        reference: ``hub:owner/name`` for a diffusers folder, or
            ``hub:owner/name/file.safetensors`` for a single file.

    Returns:
        The folder or the file, in the hub's cache.

    Raises:
        CheckpointError: not such a reference, no such repository or file, a gated one, or the
            hub is out of reach and the cache has none of it.
    """
    repo, file = _parsed(reference)
    # Here and not above: what never names the hub never loads its client.
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        listed = HfApi().model_info(repo, timeout=TIMEOUT_SECONDS).siblings or []
        wanted = _wanted(reference, [entry.rfilename for entry in listed], file)
        folder = Path(snapshot_download(repo, allow_patterns=wanted))
    except CheckpointError:
        raise
    except GatedRepoError as error:
        remedy = f"Accept its terms at huggingface.co/{repo}, and log in with: hf auth login"
        raise _refused(reference, f"The hub does not give {repo} to everyone.", remedy) from error
    except RepositoryNotFoundError as error:
        remedy = "Check the name; for a private one log in with: hf auth login"
        raise _refused(reference, f"The hub has no repository {repo}.", remedy) from error
    except Exception as error:  # whatever the network, or its absence, makes of it
        if cached := _cached(repo, file):
            return cached
        raise _refused(
            reference,
            f"{repo} is not in the hub's cache, and the hub cannot be reached ({error}).",
            "Try again online, or put the files into a model folder.",
        ) from error
    return folder / file if file else folder


def _parsed(reference: str) -> tuple[str, str | None]:
    match = REFERENCE.fullmatch(reference)
    if match is None or ".." in reference:
        raise _refused(
            reference,
            f"{reference!r} is no checkpoint of the hub.",
            "Write hub:owner/name, or hub:owner/name/file.safetensors.",
        )
    return match[1], match[2]


def _wanted(reference: str, files: Sequence[str], file: str | None) -> list[str]:
    """The files to download."""
    if file is not None:
        if file not in files:
            raise _no_such(reference, f"has no file {file!r}", files)
        return [file]
    if MODEL_INDEX not in files:
        raise _no_such(reference, "is not a diffusers folder", files)
    parts = [name for name in files if name.startswith(PARTS) and name.count("/") == 1]
    weights = [name for name in parts if name.endswith(SUFFIX) and "non_ema" not in name]
    halves = {_stem(name) for name in weights if HALF in name}
    chosen = [name for name in weights if (HALF in name) == (_stem(name) in halves)]
    return [MODEL_INDEX, *(name for name in parts if name.endswith(".json")), *chosen]


def _stem(name: str) -> str:
    """A weights file without its variant and the number of its shard."""
    return SHARD.sub("", name.replace(HALF, ""))


def _cached(repo: str, file: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file or MODEL_INDEX)
    if not isinstance(found, str):
        return None
    return Path(found) if file else Path(found).parent


def _no_such(reference: str, what: str, files: Sequence[str]) -> CheckpointError:
    singles = [name for name in files if name.endswith(SUFFIX) and "/" not in name]
    repo = reference.removeprefix(PREFIX)
    names = ", ".join(singles[:SHOWN_NAMES]) or "It holds no checkpoint that Farm reads"
    return _refused(
        reference,
        f"{repo} {what}.",
        f"Name a file of it: {names}." if singles else f"{names}.",
    )


def _refused(reference: str, message: str, remedy: str) -> CheckpointError:
    return CheckpointError(message, field="checkpoint", value=reference, remedy=remedy)

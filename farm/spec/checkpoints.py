"""Which of the checkpoints that a farm knows people mean by a name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from farm.errors import InvalidInput
from farm.spec.hires import own

Defaults = Mapping[str, Mapping[str, Any]]
"""Checkpoint name to its default fields: width, height, steps, cfg_scale, sampler."""
_SHORT_HASH = re.compile(r" ?\[[0-9a-f]{8,64}\]$")


def meant_checkpoint(name: str, names: Iterable[str]) -> str | None:
    """Which of ``names`` people mean by ``name``, or None.

    webui shows ``folder/anime.safetensors [31e35c80fc]``: the hash and the suffix may be there or
    not, and so may the folder where the rest is unambiguous.
    """
    names = list(names)
    if name in names:
        return name
    bare = _SHORT_HASH.sub("", name).removesuffix(".safetensors").replace("\\", "/")
    if bare in names:
        return bare
    same = [known for known in names if known.rpartition("/")[2] == bare]
    return same[0] if len(same) == 1 else None


def known_checkpoint(name: str | None, defaults: Defaults, where: str = "checkpoint") -> str:
    """The checkpoint that ``name`` means, or the only one; InvalidInput says which there are."""
    if name is None and len(defaults) == 1:
        return next(iter(defaults))
    if name and (meant := meant_checkpoint(name, defaults)):
        return meant
    known = ", ".join(sorted(defaults)) or "none yet: no worker has registered a checkpoint"
    raise InvalidInput(
        f"{where}: {name[:200]!r} is not known to this farm." if name else f"{where}: not given.",
        field=where,
        value=name,
        remedy=f"Known checkpoints: {known}.",
    )


def own_checkpoint(name: str, defaults: Defaults, where: str) -> str:
    """The checkpoint that ``name`` means for a second pass; empty for the first pass's."""
    return known_checkpoint(name, defaults, where) if own(name) else ""

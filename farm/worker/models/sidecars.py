"""What people keep beside a checkpoint, as webui names it: ``<name>.yaml`` and ``<name>.json``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from farm.worker.models.files import open_file
from farm.worker.models.header import damaged

MAX_BYTES = 64_000
V, EPSILON = "v_prediction", "epsilon"


def prediction_in_yaml(path: Path) -> str | None:
    """What the original training config beside a checkpoint says that the UNet returns.

    SD1 and SD2 say ``parameterization: "v"`` and mean epsilon where they say nothing; SDXL names
    the class that scales the denoiser.

    Args:
        path: of the checkpoint; the config is ``<stem>.yaml`` beside it.

    Returns:
        ``epsilon`` or ``v_prediction``; None if there is no such file.

    Raises:
        CheckpointError: it is not YAML, or says something else.
    """
    config = path.with_suffix(".yaml")
    if not os.path.isfile(config):
        return None
    params = _params(config)
    said = params.get("parameterization")
    if said in (None, "eps", "v"):
        scaling = _at(params, "denoiser_config", "params", "scaling_config", "target")
        return V if said == "v" or str(scaling).endswith(".VScaling") else EPSILON
    raise damaged(
        config,
        f"has {said!r} for parameterization",
        "Farm runs models that predict eps or v.",
    )


def _params(config: Path) -> dict[str, Any]:
    try:
        if config.stat().st_size > MAX_BYTES:
            raise damaged(config, "is too large for a config", "Remove or rename it.")
        with open_file(config) as file:
            content = yaml.safe_load(file)
        params = content["model"]["params"]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise damaged(config, "cannot be read as YAML", "Correct or remove it.") from error
    except (KeyError, TypeError) as error:
        remedy = "Give the config that the model was trained with, or remove it."
        raise damaged(config, "has no model.params", remedy) from error
    if not isinstance(params, dict):
        raise damaged(config, "has no table in model.params", "Correct or remove it.")
    return params


def _at(table: Any, *keys: str) -> Any:
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table

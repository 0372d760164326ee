"""Infotext: the generation parameters in the words and order that webui writes into images."""

from __future__ import annotations

import json
from collections.abc import Mapping

from farm.spec.job import JobSpec


def infotext(spec: JobSpec, extra: Mapping[str, object] | None = None) -> str:
    """Prompt, negative prompt and ``key: value`` parameters as one text.

    ``extra`` parameters follow the usual ones, or take their place; None values are left out.
    """
    parameters: dict[str, object] = {
        "Steps": spec.steps,
        "Sampler": spec.sampler,
        "CFG scale": f"{spec.cfg_scale:g}",
        "Seed": spec.seed,
        "Size": f"{spec.width}x{spec.height}",
        "Model hash": None,
        "Model": spec.checkpoint,
        # Noise comes from the CPU generator whatever the card, so that any card agrees.
        "RNG": "CPU",
        **(extra or {}),
    }
    lines = [spec.prompt]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    lines.append(", ".join(f"{k}: {_quoted(v)}" for k, v in parameters.items() if v is not None))
    return "\n".join(lines).strip()


def _quoted(value: object) -> str:
    text = str(value)
    if any(mark in text for mark in ",:\n"):
        return json.dumps(text, ensure_ascii=False)
    return text

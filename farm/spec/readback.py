"""Infotext read back: what an image says made it, as fields of a job. webui's is read too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from farm.errors import InvalidInput

_FEWEST = 3
"""Parameters that make a line one of them, and no part of a prompt."""
_NEGATIVE = "Negative prompt:"
# What may follow the name is part of it, so that a long line is read once.
_KEY = re.compile(r"\s*(\w[\w\s\-/]*):\s*")
_VALUE = re.compile(r'(?P<quoted>"(?:\\.|[^\\"])*")\s*(?=,|\Z)|(?P<bare>[^,]*)')
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Infotext:
    """What stands in an infotext; parameters by their names there, the last of each."""

    prompt: str = ""
    negative_prompt: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)


def read(text: str) -> Infotext:
    """Take an infotext apart. A text without parameters is a prompt."""
    *lines, last = text.strip().split("\n")
    found = list(_parameters(last))
    if len(found) < _FEWEST:
        lines, found = [*lines, last], []
    prompts: dict[bool, list[str]] = {False: [], True: []}
    negative = False
    for line in lines:
        negative = negative or line.startswith(_NEGATIVE)
        prompts[negative].append(line.removeprefix(_NEGATIVE).strip())
    prompt, other = ("\n".join(prompts[which]).strip() for which in (False, True))
    return Infotext(prompt, other, dict(found))


def fields(text: str) -> dict[str, Any]:
    """The fields of a job that an infotext gives, checked for their kind and no further.

    What webui does not write is as it is there by default: noise is that of a GPU.

    Raises:
        InvalidInput: there are no parameters, or one of those that are known is no number, size
            or range where it ought to be; names it.
    """
    said = read(text)
    if not said.parameters:
        raise InvalidInput(
            "There are no generation parameters in the text.",
            field="infotext",
            remedy="Give an image as it came out of Farm or webui.",
        )
    made: dict[str, Any] = {"prompt": said.prompt, "negative_prompt": said.negative_prompt}
    made["rng"] = "CPU" if said.parameters.get("RNG") == "CPU" else "NV"
    for name, value in said.parameters.items():
        known = _FIELDS.get(name)
        if known is None:
            continue
        try:
            made |= known(value)
        except ValueError:
            raise InvalidInput(
                f"{name}: {value!r} cannot be understood.",
                field="infotext",
                value=value,
                remedy=f"Correct {name} in the text, or leave it out.",
            ) from None
    return made


def _parameters(line: str) -> Iterator[tuple[str, str]]:
    place = 0
    while key := _KEY.match(line, place):
        value = _VALUE.match(line, key.end())
        assert value is not None
        said = _unquoted(value["quoted"]) if value["quoted"] else value["bare"].strip()
        yield key[1].rstrip(), said
        place = value.end() + 1


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _as(name: str, kind: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    return lambda value: {name: kind(value)}


def _sides(width: str, height: str) -> Callable[[str], dict[str, Any]]:
    def sides(value: str) -> dict[str, Any]:
        found = _SIZE.fullmatch(value)
        if found is None:
            raise ValueError(value)
        return {width: int(found[1]), height: int(found[2])}

    return sides


def _interval(value: str) -> dict[str, Any]:
    start, end = re.split(r"(?<!e)-", value)
    return {"guidance_start": float(start), "guidance_end": float(end)}


def _true(value: str) -> bool:
    return value == "True"


_FIELDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": _as("steps", int),
    "Sampler": _as("sampler", str),
    "CFG scale": _as("cfg_scale", float),
    "Seed": _as("seed", int),
    "Size": _sides("width", "height"),
    "Model": _as("checkpoint", str),
    "Clip skip": _as("clip_skip", int),
    "Variation seed": _as("variation_seed", int),
    "Variation seed strength": _as("variation_strength", float),
    "Seed resize from": _sides("seed_resize_from_width", "seed_resize_from_height"),
    "Denoising strength": _as("denoising_strength", float),
    "ENSD": _as("eta_noise_seed_delta", int),
    "Hires checkpoint": _as("hires_checkpoint", str),
    "Hires sampler": _as("hires_sampler", str),
    "Hires prompt": _as("hires_prompt", str),
    "Hires negative prompt": _as("hires_negative_prompt", str),
    "Hires upscale": _as("hires_scale", float),
    "Hires resize": _sides("hires_width", "hires_height"),
    "Hires steps": _as("hires_steps", int),
    "Hires upscaler": _as("hires_upscaler", str),
    "Hires CFG Scale": _as("hires_cfg_scale", float),
    "Extra noise": _as("extra_noise", float),
    "Noise Schedule": lambda value: {"zero_terminal_snr": value == "Zero Terminal SNR"},
    "Discard penultimate sigma": _as("discard_penultimate", _true),
    "Schedule type": _as("scheduler", str),
    "Schedule min sigma": _as("sigma_min", float),
    "Schedule max sigma": _as("sigma_max", float),
    "Schedule rho": _as("rho", float),
    "SGM noise multiplier": _as("sgm_noise_multiplier", _true),
    "SGM noise multplier": _as("sgm_noise_multiplier", _true),  # as webui 1.8 spells it
    "Eta": _as("eta", float),
    "Eta DDIM": _as("eta", float),
    "Sigma churn": _as("s_churn", float),
    "Sigma tmin": _as("s_tmin", float),
    "Sigma tmax": _as("s_tmax", float),
    "Sigma noise": _as("s_noise", float),
    "NGMS": _as("s_min_uncond", float),
    "NGMS all steps": _as("s_min_uncond_all", _true),
    "Skip Early CFG": _as("skip_early_cond", float),
    "CFG Rescale": _as("cfg_rescale", float),
    "Guidance interval": _interval,
    "Emphasis": _as("emphasis", str),
}

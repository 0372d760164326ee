"""Batch files: a batch as YAML or JSON, or one prompt a line as webui's "prompts from file"; or
an image, which says in its infotext how it is made again.

A prompt file may give options instead, which override the batch's fields for that image::

    a red apple
    --prompt "a lion" --negative_prompt "blurry, dark" --steps 10 --sampler_name "Euler a"
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from farm.errors import InvalidInput
from farm.spec.batch import BatchRequest
from farm.spec.hires import HIRES_SIZES
from farm.spec.imagefile import inspected
from farm.spec.problems import unparsed
from farm.spec.readback import fields

MAX_BYTES = 32 * 1024 * 1024
_MAX_VALUES = 1_000_000
_MAX_BITS = 1024
"""Of a number: far more than any field takes, and few enough to be written out."""

_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "prompt": ("prompt", str),
    "negative_prompt": ("negative_prompt", str),
    "width": ("width", int),
    "height": ("height", int),
    "steps": ("steps", int),
    "cfg_scale": ("cfg_scale", float),
    "seed": ("seed", int),
    "sampler_name": ("sampler", str),
    "sampler": ("sampler", str),
    "sd_model": ("checkpoint", str),
    "checkpoint": ("checkpoint", str),
    "scheduler": ("scheduler", str),
    "eta": ("eta", float),
    "subseed": ("variation_seed", int),
    "subseed_strength": ("variation_strength", float),
    "seed_resize_from_w": ("seed_resize_from_width", int),
    "seed_resize_from_h": ("seed_resize_from_height", int),
    "denoising_strength": ("denoising_strength", float),
    "hr_scale": ("hires_scale", float),
    "hr_resize_x": ("hires_width", int),
    "hr_resize_y": ("hires_height", int),
    "hr_upscaler": ("hires_upscaler", str),
    "hr_second_pass_steps": ("hires_steps", int),
    "hr_sampler_name": ("hires_sampler", str),
    "hr_checkpoint_name": ("hires_checkpoint", str),
    "hr_prompt": ("hires_prompt", str),
    "hr_negative_prompt": ("hires_negative_prompt", str),
}
IMAGES = (".png", ".webp", ".jpg", ".jpeg", ".avif")


def read(path: str | Path) -> dict[str, Any]:
    """The fields of a :class:`BatchRequest` that the file at ``path`` gives, unchecked values.

    The suffix tells the format: ``.yaml``, ``.yml``, ``.json``, ``.txt`` for prompt lines, or one
    of :data:`IMAGES`.

    Raises:
        InvalidInput: the file cannot be read or understood; names it, the line and a remedy.
    """
    path = Path(path)
    if path.suffix.lower() in IMAGES:
        return _image(path)
    formats = {".yaml": _yaml, ".yml": _yaml, ".json": _json, ".txt": _prompt_lines}
    parse = formats.get(path.suffix.lower())
    if parse is None:
        raise _wrong(path, f"{path.suffix or 'no suffix'!r} is no batch file's.", _FORMATS)
    text = _text(path)
    if not text.strip():
        raise _wrong(path, "it is empty.", "Write at least one prompt into it.")
    found = parse(text, path)
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise _wrong(path, f"it holds a {kind}, not fields.", "Begin with lines like `prompt: …`.")
    for name in found:
        if name not in BatchRequest.model_fields:
            known = ", ".join(BatchRequest.model_fields)
            raise _wrong(path, f"{name!r} is not a field of a batch.", f"Fields: {known}.")
    return found


_FORMATS = "Use a file named .yaml, .json, or .txt with one prompt a line."


def _image(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            found = fields(inspected(file).infotext or "")
    except OSError as error:
        raise _unreadable(path, error) from None
    except InvalidInput as error:
        raise _wrong(path, error.message, error.remedy or "Give another image.") from None
    if "denoising_strength" in found and not {*HIRES_SIZES} & {*found}:
        reason = "it was made from another picture (img2img), which it does not carry."
        raise _wrong(path, reason, "Give what `farm info` shows of it in a prompt and options.")
    return found


def _unreadable(path: Path, error: OSError) -> InvalidInput:
    remedy = "Give the path of a batch file, or a prompt in quotes."
    return _wrong(path, f"it cannot be read: {error.strerror}.", remedy)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from None
    if len(data) > MAX_BYTES:
        raise _wrong(path, f"it is larger than {MAX_BYTES} bytes.", "Split it, or use axes.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _wrong(path, "it is not UTF-8 text.", "Save it as UTF-8.", line) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise _wrong(path, "it is not a text file.", "Save it as UTF-8 text.", line)
    return text


def _yaml(text: str, path: Path) -> Any:
    try:
        return _plain(yaml.safe_load(text), path)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        reason = error.problem or "it cannot be understood"
        raise _wrong(path, f"not valid YAML: {reason}.", _YAML_REMEDY, line) from None
    except yaml.YAMLError as error:
        raise _wrong(path, f"not valid YAML: {error}.", _YAML_REMEDY) from None
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"not valid YAML: {unparsed(error)}.", _YAML_REMEDY) from None


_YAML_REMEDY = "Mind the indentation, and quote texts that hold a colon or begin with a sign."


def _json(text: str, path: Path) -> Any:
    try:
        return _plain(json.loads(text), path)
    except json.JSONDecodeError as error:
        reason = f"not valid JSON: {error.msg}."
        raise _wrong(path, reason, "Correct that line.", error.lineno) from None
    except (ValueError, RecursionError) as error:
        reason = f"not valid JSON: {unparsed(error)}."
        raise _wrong(path, reason, "Write a JSON object of fields.") from None


def _plain(document: Any, path: Path) -> Any:
    """``document`` if JSON can say it: a YAML alias may also stand for a billion values."""
    for count, (field, value) in enumerate(_parts(document, "")):
        if count > _MAX_VALUES:
            raise _wrong(path, "it holds too many values.", "Split it, or use axes.")
        finite = not isinstance(value, float) or math.isfinite(value)
        if not finite or not isinstance(value, str | int | float | list | dict | None):
            reason = f"{field}: {value} is neither text nor a number."
            raise _wrong(path, reason, "Put it in quotes if it is text.")
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _wrong(path, f"{field}: a number of too many digits.", "Use a smaller one.")
        for name in value if isinstance(value, dict) else ():
            if not isinstance(name, str):
                reason = f"{field or 'field'}: the name {name!r} is not text."
                raise _wrong(path, reason, "Put it in quotes.")
    return document


def _parts(value: Any, field: str) -> Iterator[tuple[str, Any]]:
    yield field, value
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _parts(part, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _parts(part, f"{field}[{index}]")


def _prompt_lines(text: str, path: Path) -> dict[str, Any]:
    listed = []
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if line.startswith("--"):
            listed.append(_options(line, path, number))
        elif line and not line.startswith("#"):
            listed.append({"prompt": line})
    if not listed:
        raise _wrong(path, "it holds no prompt.", "Write one prompt a line.")
    return {"jobs": listed}


def _options(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        remedy = 'Put texts with quotes in them into double quotes: --prompt "it\'s".'
        raise _wrong(path, f"{error}.", remedy, number) from None
    found: dict[str, Any] = {}
    while words:
        option = words.pop(0)
        name, convert = _OPTIONS.get(option.removeprefix("--"), ("", str))
        if not name or not option.startswith("--"):
            known = ", ".join(f"--{known}" for known in _OPTIONS)
            raise _wrong(path, f"{option} is not an option.", f"Options: {known}.", number)
        # webui takes a prompt of several words without quotes.
        given = []
        while words and not words[0].startswith("--"):
            given.append(words.pop(0))
        found[name] = _converted(option, " ".join(given), convert, (path, number))
    return found


def _converted(
    option: str, text: str, convert: Callable[[str], Any], place: tuple[Path, int]
) -> Any:
    path, number = place
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        kind = "a whole number" if convert is int else "a number"
        raise _wrong(path, f"{option} {text[:100]!r} is not {kind}.", f"Write {kind}.", number)
    return value


def _wrong(path: Path, reason: str, remedy: str, line: int | None = None) -> InvalidInput:
    where = f"{path}, line {line}" if line else str(path)
    return InvalidInput(f"{where}: {reason}", field="file", value=str(path), remedy=remedy)

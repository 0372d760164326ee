"""farm info: what made an image, read out of its file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.errors import InvalidInput
from farm.spec.imagefile import inspected


def info(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNG, WebP, JPEG, AVIF.")],
    as_json: AsJson = False,
) -> None:
    """Show the generation parameters that image files carry, ours, webui's or others'.

    Needs no farm. Example: farm info lions/*.webp
    """
    found = {str(file): _told(file) for file in files}
    if as_json:
        output.print_json({"images": [{"file": file, **told} for file, told in found.items()]})
        return
    screen = output.console()
    for file, told in found.items():
        head = f"{file}: {told['format']}, {told['width']}x{told['height']}"
        screen.print(head, markup=False, highlight=False, soft_wrap=True)
        text = told["infotext"] or "It carries no generation parameters."
        screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _told(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as data, warnings.catch_warnings():
            # Pillow also warns of what it then raises, or of what is no concern of ours.
            warnings.simplefilter("ignore")
            return vars(inspected(data))
    except OSError as error:
        raise InvalidInput(
            f"{file}: it cannot be read: {error.strerror}.",
            field="file",
            value=str(file),
            remedy="Give the path of an image.",
        ) from None
    except InvalidInput as error:
        reason = f"{file}: {error.message[0].lower()}{error.message[1:]}"
        raise InvalidInput(reason, field="file", value=str(file), remedy=error.remedy) from None

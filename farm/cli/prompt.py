"""farm prompt: what a prompt means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.spec.fields import MAX_STEPS
from farm.spec.prompt.emphasis import Section
from farm.spec.prompt.explanation import Explanation, Saying
from farm.spec.prompt.explanation import explain as explained

prompt = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="markdown")


@prompt.callback()
def _prompt() -> None:
    """Prompts: what they mean."""


@prompt.command()
def explain(
    text: Annotated[str, typer.Argument(metavar="PROMPT", help="As you would submit it.")],
    negative: Annotated[str, typer.Option("--negative", help="The negative prompt.")] = "",
    steps: Annotated[int, typer.Option("--steps", min=1, max=MAX_STEPS)] = 20,
    sampler: Annotated[str, typer.Option("--sampler")] = "Euler a",
    as_json: AsJson = False,
) -> None:
    """Show what a prompt says at each step: parts, weights, editing, LoRAs. Needs no farm.

    Example: farm prompt explain "a [cat:big dog:0.5], (red:1.3) AND fog :0.4" --steps 20
    """
    found = explained(text, negative, steps=steps, sampler=sampler)
    if as_json:
        output.print_json(asdict(found))
        return
    for line in _lines(found, steps):
        output.console().print(line, markup=False)


def _lines(found: Explanation, steps: int) -> Iterator[str]:
    unit = "step" if found.calls == steps else "call"
    if unit == "call":
        yield f"{steps} steps are {found.calls} calls of the model"
    for number, part in enumerate(found.parts, start=1):
        if len(found.parts) > 1:
            yield f"part {number}, weight {part.weight:g}"
        yield from (f"{unit} {_span(saying)}: {_words(saying)}" for saying in part.says)
    if any(saying.text for saying in found.negative):
        yield "negative prompt"
        yield from (f"{unit} {_span(saying)}: {_words(saying)}" for saying in found.negative)
    for where, loras in (("text encoder", found.te_loras), ("UNet", found.unet_loras)):
        yield from (f"LoRA {lora.name} on the {where}: {lora.strength:g}" for lora in loras)
    yield from (f"note: {note}" for note in found.notes)


def _span(saying: Saying) -> str:
    return f"{saying.first}-{saying.last}" if saying.last > saying.first else f"{saying.first}"


def _words(saying: Saying) -> str:
    read = " + ".join(str(tokens) for tokens in saying.chunks)
    unit = "token" if saying.chunks == (1,) else "tokens"
    return f"{' | BREAK | '.join(map(_section, saying.sections))} ({read} {unit})"


def _section(section: Section) -> str:
    shown = (
        segment.text if segment.weight == 1 else f"{segment.text}×{segment.weight:.3g}"
        for segment in section
    )
    return "".join(shown).strip() or "(nothing)"

"""farm workers: who renders, with which checkpoints; drain one, look into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.client import Farm
from farm.errors import InvalidInput, NotFound

workers = typer.Typer(
    add_completion=False, invoke_without_command=True, rich_markup_mode="markdown"
)

Name = Annotated[str, typer.Argument(metavar="WORKER", help="As `farm workers` shows it.")]


@workers.callback()
def _workers(context: typer.Context, as_json: AsJson = False) -> None:
    """List the workers that are alive and the checkpoints they know; drain one, or look into one.

    Examples: farm workers | farm workers drain gpu0 | farm workers quarantine gpu0
    """
    if context.invoked_subcommand:
        return
    with Farm() as farm:
        found, checkpoints = farm.workers(), farm.assets("checkpoint")
    if as_json:
        output.print_json({"workers": found, "checkpoints": checkpoints})
        return
    screen = output.console()
    if not found:
        screen.print("No worker is alive. Start one with `farm worker`, or all with `farm up`.")
    else:
        rows = [
            (
                worker["name"],
                worker["host"],
                worker["device"].get("name"),
                worker["profile"],
                worker["state"],
                f"{worker['running']}/{worker['capacity']}",
                ", ".join(worker["resident"]),
            )
            for worker in found
        ]
        columns = ("worker", "host", "device", "profile", "state", ">jobs", "resident")
        screen.print(output.table("", columns, rows))
    for worker in found:
        if away := worker["quarantine"]:
            screen.print(_away(worker["name"], away), markup=False)
        if refusal := worker["stats"].get("refuses"):
            screen.print(f"{worker['name']} begins no job: {refusal}", markup=False)
    for checkpoint in checkpoints:
        what = checkpoint["error"] or f"{checkpoint['family']}, {output.size(checkpoint['bytes'])}"
        screen.print(f"checkpoint {checkpoint['name']}: {what}", markup=False)


def _away(name: str, away: dict[str, Any]) -> str:
    """Why a worker is in quarantine, and how it comes out."""
    back = f"until: farm workers resume {name}" if away["by_hand"] else "it is being tested"
    if away["last_test"]:
        back = f"{away['tests']} tests failed, the last: {away['last_test']}"
    return f"{name} is in quarantine for {output.age(away['since'])}: {away['reason']} ({back})"


@workers.command(context_settings={"ignore_unknown_options": True})
def tag(
    name: Name,
    changes: Annotated[
        list[str], typer.Argument(metavar="+TAG|-TAG...", help="To have, and not to have any more.")
    ],
) -> None:
    """Give a worker tags, or take some. Batches may ask for them: `farm submit --tag a100`.

    When it restarts, it has those of FARM_TAGS again.

    Example: farm workers tag gpu0 +a100 -spare
    """
    signs: dict[str, list[str]] = {"+": [], "-": []}
    for change in changes:
        if change[:1] not in signs:
            raise InvalidInput(
                f"{change!r} does not say whether the tag comes or goes.",
                field="tag",
                value=change,
                remedy=f"Write +{change} or -{change}.",
            )
        signs[change[0]].append(change[1:])
    with Farm() as farm:
        farm.worker(name).tag(add=signs["+"], remove=signs["-"])
        found = [worker for worker in farm.workers() if worker["name"] == name]
    for worker in found:
        who = f"{name} on {worker['host']}" if len(found) > 1 else name
        tags = ", ".join(worker["tags"])
        typer.echo(f"{who} has the tags {tags}." if tags else f"{who} has no tags.")


@workers.command()
def drain(name: Name) -> None:
    """Give a worker no more jobs; what it holds it finishes. It takes jobs again when it restarts.

    Example: farm workers drain gpu0
    """
    with Farm() as farm:
        farm.worker(name).drain()
    typer.echo(f"{name} gets no more jobs.")


@workers.command()
def quarantine(
    name: Name,
    because: Annotated[str | None, typer.Option(help="Why, for others to read.")] = None,
) -> None:
    """Give a worker no jobs until it is resumed, its restarts included.

    A worker that fails jobs of three batches in a row comes there by itself, and leaves when it
    makes known pictures right. Example: farm workers quarantine gpu0 --because "fan is broken"
    """
    with Farm() as farm:
        farm.worker(name).quarantine(because)
    typer.echo(f"{name} gets no jobs until: farm workers resume {name}")


@workers.command()
def resume(name: Name) -> None:
    """Give a drained or quarantined worker jobs again.

    Example: farm workers resume gpu0
    """
    with Farm() as farm:
        farm.worker(name).resume()
    typer.echo(f"{name} takes jobs.")


@workers.command()
def trace(
    name: Name,
    seconds: Annotated[float, typer.Option(min=0.1, help="Only the last so many.")] = 10.0,
    to: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Save what a worker did when: loads, texts, forwards, decodes, files. See ui.perfetto.dev.

    Example: farm workers trace gpu0 --seconds 10
    """
    with Farm() as farm:
        found = farm.worker(name).trace()
    done = [event for event in found["traceEvents"] if event["ph"] == "X"]
    if not done:
        raise NotFound(f"{name} has done nothing yet.", field="worker", value=name)
    since = max(event["ts"] + event["dur"] for event in done) - seconds * 1e6
    found["traceEvents"] = [
        event for event in found["traceEvents"] if event.get("ts", since) >= since
    ]
    target = to or Path(f"{name}-trace.json")
    target.write_text(json.dumps(found))
    typer.echo(f"{target}: open it at https://ui.perfetto.dev")


@workers.command()
def calibrate(
    name: Name,
    checkpoint: Annotated[
        str | None, typer.Option(help="To measure; by default the one it used last.")
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(help="As 512x768; may be given more than once."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Have a worker measure what calls of a checkpoint take. It plans by that from then on.

    Each call runs between two steps of the jobs under way.

    Example: farm workers calibrate gpu0 --size 512x512 --size 1024x1024
    """
    with Farm() as farm:
        report = farm.worker(name).calibrate(checkpoint=checkpoint, sizes=map(_size, size or ()))
    if as_json:
        output.print_json(report)
        return
    screen = output.console()
    columns = ("work", "size", ">rows", ">predicted", ">measured", ">seconds", ">rows/s")
    screen.print(output.table(report["checkpoint"], columns, map(_calibrated, report["calls"])))
    if all(call["bytes"] is None for call in report["calls"]):
        screen.print("No memory was measured: on a CPU it cannot be told what a call takes.")


@workers.command()
def memory(
    name: Name,
    seconds: Annotated[
        float, typer.Option(min=0, max=60, help="Record for so long who allocates what.")
    ] = 0.0,
    to: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
) -> None:
    """Save what lies where in a worker's card, as torch tells it.

    Example: farm workers memory gpu0 --seconds 5
    """
    with Farm() as farm:
        content, recorded = farm.worker(name).memory(seconds=seconds)
    target = to or Path(f"{name}-memory.pickle")
    target.write_bytes(content)
    for checkpoint, held in recorded.items():
        typer.echo(f"Recorded forwards of {checkpoint} hold {output.size(held)}.")
    typer.echo(f"{target}: open it at https://pytorch.org/memory_viz")


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise InvalidInput(
            f"{text!r} is no size.", field="size", value=text, remedy="Write it as 512x768."
        )
    return int(width), int(height)


def _calibrated(call: dict[str, Any]) -> tuple[Any, ...]:
    kind, seconds = call["call"], call["seconds"]
    return (
        f"{kind['work']}, {kind['mode']}",
        f"{call['width']}x{call['height']}",
        kind["rows"],
        output.size(call["predicted"]),
        output.size(call["bytes"]),
        "out of memory" if seconds is None else f"{seconds:.4f}",
        seconds and f"{kind['rows'] / seconds:.2f}",
    )

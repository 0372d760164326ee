"""farm workers: who renders, with which checkpoints; drain one, look into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.batches import AsJson
from farm.client import Farm
from farm.errors import NotFound

workers = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")

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


@workers.command()
def drain(name: Name) -> None:
    """Give a worker no more jobs; what it holds it finishes. It takes jobs again when it restarts.

    Example: farm workers drain gpu0
    """
    with Farm() as farm:
        farm.drain(name)
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
        farm.quarantine(name, because)
    typer.echo(f"{name} gets no jobs until: farm workers resume {name}")


@workers.command()
def resume(name: Name) -> None:
    """Give a drained or quarantined worker jobs again.

    Example: farm workers resume gpu0
    """
    with Farm() as farm:
        farm.resume(name)
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
        found = farm.trace(name)
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

"""farm doctor: is this machine fit for a farm, and what to do if not."""

from __future__ import annotations

import typer

from farm.cli import output
from farm.cli.checks import CHECKS, examine
from farm.cli.output import AsJson
from farm.settings import Settings

_COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: Python, memory, disk, port, models, servers, GPUs, torch.

    Exits with 1 if something must be mended. Example: farm doctor --json
    """
    settings, findings = Settings(), {}
    for name in CHECKS:
        finding = findings[name] = examine(name, settings)
        if as_json:
            continue
        state = typer.style(f"{finding.state:4}", fg=_COLOURS[finding.state])
        typer.echo(f"{state}  {name}: {finding.detail}")
        if finding.remedy:
            typer.echo(f"      {finding.remedy}")
    failed = any(finding.state == "FAIL" for finding in findings.values())
    if as_json:
        checks = [{"name": name, **vars(finding)} for name, finding in findings.items()]
        output.print_json({"ok": not failed, "checks": checks})
    raise typer.Exit(1 if failed else 0)

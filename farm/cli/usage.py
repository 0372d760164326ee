"""farm usage: what cards spent their seconds on, and how good forecasts were."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.client import Farm
from farm.spec.uses import USES

By = Annotated[str, typer.Option("--by", help="user, batch, checkpoint, day or worker.")]
Since = Annotated[str, typer.Option("--since", help="24h, 7d, or a date such as 2026-11-20.")]
Forecasts = Annotated[bool, typer.Option("--forecasts", help="How good forecasts were, instead.")]


def usage(
    by: By = "user", since: Since = "30d", forecasts: Forecasts = False, as_json: AsJson = False
) -> None:
    """Show what GPUs spent their seconds on. Every second of every worker is in one column.

    Examples: farm usage --by batch --since 24h | farm usage --forecasts
    """
    with Farm() as farm:
        told = {"forecasts": farm.forecasts()} if forecasts else farm.usage(by=by, since=since)
    if as_json:
        output.print_json(told)
    elif forecasts:
        _show_forecasts(told["forecasts"])
    else:
        _show_usage(told)


def _show_usage(told: dict[str, Any]) -> None:
    screen = output.console()
    if not told["lines"]:
        screen.print(f"No worker has been alive since {told['since']}.")
        return
    uses = [use for use in USES if told["total"].get(use)]
    lines = sorted(told["lines"], key=lambda line: line["key"])
    whole = {"key": "all", "seconds": told["total"], "total": sum(told["total"].values())}
    rows = [
        (
            line["key"] or "none",
            *(_share(line["seconds"].get(use)) for use in uses),
            output.duration(line["total"]),
        )
        for line in [*lines, whole]
    ]
    screen.print(output.table("", (told["by"], *(f">{use}" for use in uses), ">all"), rows))


def _share(seconds: float | None) -> str:
    return output.duration(seconds) if seconds else ""


def _show_forecasts(told: list[dict[str, Any]]) -> None:
    rows = [
        (
            each["moment"],
            each["batches"],
            _percent(each["error"], sign="+"),
            _percent(each["miss"]),
            _percent(each["within_p90"]),
        )
        for each in told
    ]
    columns = ("forecast when", ">batches", ">median error", ">median miss", ">within p90")
    output.console().print(output.table("", columns, rows))


def _percent(share: float | None, *, sign: str = "") -> str:
    return "-" if share is None else f"{100 * share:{sign}.0f}%"

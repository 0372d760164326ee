"""farm quote: what a batch would take, before anything of it runs."""

from __future__ import annotations

from typing import Any

from farm.cli import output
from farm.cli.output import AsJson
from farm.cli.request import Asked, of_a_batch
from farm.cli.show import reason
from farm.client import Farm
from farm.errors import InvalidInput

_UNFIT_SHOWN = 5


@of_a_batch
def quote(asked: Asked, *, as_json: AsJson = False) -> None:
    """Say what a batch would take at today's load; nothing is submitted.

    Example: farm quote examples/sweep.yaml -n 100
    """
    if asked.listed:
        raise InvalidInput(
            f"{asked.what}: a file of one job a line is not quoted.",
            field="file",
            value=asked.what,
            remedy="Quote some of its jobs as `jobs` of a .yaml or .json; farm submit --dry-run "
            "checks and counts all.",
        )
    request = asked.request()
    with Farm() as farm:
        told = farm.quote(request)
    if as_json:
        output.print_json(told)
        return
    screen = output.console()
    names = ", ".join(f"{name} ({jobs})" for name, jobs in told["checkpoints"].items())
    how = "as measured" if told["measured"] else "a guess: no such job has been timed yet"
    across, down = told["sheet"]
    screen.print(f"{output.jobs(told['jobs'])} on {names}; {told['loads']} to load", markup=False)
    screen.print(f"GPU time   {output.duration(told['gpu_seconds'])}, {how}")
    screen.print(f"disk       {output.size(told['disk_bytes'])}, roughly")
    screen.print(f"sheet      {across}x{down} pixels")
    _memory(told)
    _times(told)
    for notice in told["notices"]:
        screen.print(notice, markup=False)
    if told["refusal"]:
        becomes = "It would wait" if request.get("wait_for_worker") else "It would be refused"
        screen.print(f"{becomes}: {reason(told['refusal'])}", markup=False)


def _memory(told: dict[str, Any]) -> None:
    """Of the largest images, and what does not fit."""
    screen = output.console()
    peaks = [shape["vram_bytes"] for shape in told["shapes"] if shape["vram_bytes"]]
    if peaks:
        screen.print(f"memory     {output.size(max(peaks))} at the peak of its largest image")
    for shape in [shape for shape in told["shapes"] if shape["fits"] is False][:_UNFIT_SHOWN]:
        size = f"{shape['width']}x{shape['height']}"
        what = f"{output.jobs(shape['jobs'])} of {size} on {shape['checkpoint']} fit no worker."
        screen.print(f"{what} {shape['remedy']}", markup=False)


def _times(told: dict[str, Any]) -> None:
    screen, eta = output.console(), told["eta"]
    if eta is None:
        screen.print(
            "No live worker could make some of its jobs; `farm model ls` shows which host has what."
        )
        return
    workers = "1 worker" if told["workers"] == 1 else f"{told['workers']} workers"
    likely, late = output.duration(eta["p50_seconds"]), output.duration(eta["p90_seconds"])
    screen.print(f"done in    {likely} on {workers} at today's load, nine times in ten in {late}")
    screen.print(f"           {output.duration(told['seconds_alone'])} with the farm to itself")

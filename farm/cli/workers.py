"""farm workers: who renders, and with which checkpoints."""

from __future__ import annotations

from farm.cli import output
from farm.cli.batches import AsJson
from farm.client import Farm


def workers(as_json: AsJson = False) -> None:
    """List the workers that are alive and the checkpoints they know."""
    with Farm() as farm:
        found, checkpoints = farm.workers(), farm.assets()
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
    for checkpoint in checkpoints:
        what = checkpoint["error"] or f"{checkpoint['family']}, {output.size(checkpoint['bytes'])}"
        screen.print(f"checkpoint {checkpoint['name']}: {what}", markup=False)

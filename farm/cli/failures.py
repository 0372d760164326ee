"""farm failed, retry: jobs that have failed for good, and trying them again."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.cli.show import reason
from farm.client import Farm
from farm.errors import InvalidInput


def failed(
    batch: Annotated[
        str | None, typer.Argument(metavar="BATCH", help="Only its jobs, one by one.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs that have failed for good, and why: by batch and cause, or a batch's one by one.

    Examples: farm failed | farm failed 12 | farm retry --failed 12
    """
    with Farm() as farm:
        if batch is None:
            _by_cause(list(islice(farm.failures(), number)), as_json)
            return
        found = list(islice(farm.batch(batch).jobs("failed"), number))
    if as_json:
        output.print_json({"jobs": [job.data for job in found]})
        return
    for job in found:
        worker = job.data["worker"] or "no worker"
        output.console().print(f"{job.id} on {worker}: {reason(job.data['error'])}", markup=False)
    if not found:
        output.console().print(f"No job of batch {batch} has failed.")


def _by_cause(batches: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        output.print_json({"batches": batches})
        return
    screen = output.console()
    for batch in batches:
        name = f" {batch['name']!r}" if batch["name"] else ""
        head = f"batch {batch['batch']}{name} of {batch['user']}: {batch['failed']} failed"
        screen.print(head, markup=False)
        for cause in batch["causes"]:
            where = f" on {', '.join(cause['workers'])}" if cause["workers"] else ""
            told = f"  {cause['jobs']} x {cause['failure_class']}{where}, first {cause['first']}: "
            screen.print(told + reason(cause), markup=False)
    if batches:
        screen.print(f"Try a batch's again: farm retry --failed {batches[0]['batch']}")
    else:
        screen.print("No job has failed.")


def retry(
    ids: Annotated[
        list[str], typer.Argument(metavar="JOB...", help="Jobs (12-3), or with --failed batches.")
    ],
    failed: Annotated[
        bool, typer.Option("--failed", help="All failed jobs of these batches.")
    ] = False,
) -> None:
    """Try failed jobs again, with a new budget of tries each.

    Examples: farm retry 12-3 12-7 | farm retry --failed 12
    """
    for id in ids:
        if ("-" in id) == failed:
            remedy = "Name a batch." if failed else f"For all its failed jobs: --failed {id}"
            what = "is a job" if failed else "is a batch"
            raise InvalidInput(f"{id} {what}.", field="id", value=id, remedy=remedy)
    with Farm() as farm:
        if not failed:
            for job in [farm.retry(id) for id in ids]:
                typer.echo(f"job {job.id}: {job.state}")
            return
        for batch in [farm.batch(id) for id in ids]:
            typer.echo(f"batch {batch.id}: jobs tried again: {batch.retry()}")

"""farm ls, watch, why, cancel, pause, resume, prio: batches and their jobs."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from farm.cli import output, progress
from farm.cli.output import AsJson
from farm.cli.show import exit_code, outcome
from farm.client import Batch, Farm

BatchId = Annotated[str, typer.Argument(metavar="BATCH", help="Its number, as `farm ls` shows.")]


def ls(
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List batches, newest first.

    Example: farm ls -n 5
    """
    with Farm() as farm:
        found = list(islice(farm.batches(), number))
    if as_json:
        output.print_json({"batches": [batch.data for batch in found]})
        return
    rows = [
        (
            batch.id,
            batch.data["name"],
            batch.state,
            f"{batch.counts['succeeded']}/{batch.total}",
            batch.counts["failed"] or "",
            batch.data["user"],
            output.age(batch.data["created_at"]),
            output.ends(batch.data["eta"]),
        )
        for batch in found
    ]
    columns = (">id", "name", "state", ">images", ">failed", "user", ">age", ">ends in")
    screen = output.console()
    if rows:
        screen.print(output.table("", columns, rows))
    else:
        screen.print('No batch yet. Try: farm submit "a red apple" -n 4 --watch')


def watch(id: BatchId, as_json: AsJson = False) -> None:
    """Follow a batch until it has ended; exits with 1 if an image is missing then.

    Ctrl-C stops watching, not the batch. Example: farm watch 12
    """
    with Farm() as farm:
        batch = progress.follow(farm.batch(id))
        if as_json:
            output.print_json(batch.data)
        else:
            outcome(batch)
    raise typer.Exit(exit_code(batch))


def cancel(
    ids: Annotated[list[str], typer.Argument(metavar="BATCH...", help="Their numbers.")],
    as_json: AsJson = False,
) -> None:
    """Cancel batches: jobs that run stop at their next step, images made so far stay.

    Example: farm cancel 12 13
    """
    with Farm() as farm:
        # All are looked up before any is cancelled: a misspelt number cancels nothing.
        found = [batch.cancel() for batch in [farm.batch(id) for id in ids]]
    if as_json:
        output.print_json({"batches": [batch.data for batch in found]})
        return
    for batch in found:
        output.console().print(f"batch {batch.id}: {output.counts_line(batch.counts)}")


def why(
    id: Annotated[str, typer.Argument(metavar="JOB", help="A job, such as 12-3.")],
    as_json: AsJson = False,
) -> None:
    """Say why a job is where it is, and what would change that.

    Example: farm why 12-3
    """
    with Farm() as farm:
        told = farm.why(id)
    if as_json:
        output.print_json(told)
        return
    screen = output.console()
    screen.print(f"job {told['job']} {told['state']}: {told['reason']}", markup=False)
    if told["remedy"]:
        screen.print(told["remedy"], markup=False)


def pause(
    ids: Annotated[list[str], typer.Argument(metavar="BATCH...", help="Batches to pause.")],
) -> None:
    """Begin no more jobs of batches; what runs goes on to its end.

    Example: farm pause 12
    """
    with Farm() as farm:
        for batch in [farm.batch(id) for id in ids]:
            _say(batch.pause())


def resume(
    ids: Annotated[list[str], typer.Argument(metavar="BATCH...", help="Batches to go on with.")],
) -> None:
    """Go on with paused batches.

    Example: farm resume 12
    """
    with Farm() as farm:
        for batch in [farm.batch(id) for id in ids]:
            _say(batch.resume())


def prio(
    id: BatchId,
    priority: Annotated[str, typer.Argument(help="interactive, normal, background, or 0 to 100.")],
) -> None:
    """Change how important a batch is, for its jobs that no worker holds yet.

    Example: farm prio 12 background
    """
    with Farm() as farm:
        _say(farm.batch(id).set_priority(priority))


def _say(batch: Batch) -> None:
    told = f"batch {batch.id} {batch.state}, priority {batch.data['priority']}"
    output.console().print(f"{told}: {output.counts_line(batch.counts)}")

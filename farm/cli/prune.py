"""farm prune, keep: old batches go, but for those that somebody wants kept."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.client import Farm
from farm.errors import InvalidInput

_DAYS = {"d": 1.0, "w": 7.0}
_AGE = re.compile(r"([0-9]{1,5})([dw])")


def prune(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Since they ended, such as 90d or 12w.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove batches that ended long ago, with their images; `farm keep` protects one.

    Example: farm prune --older-than 90d --dry-run
    """
    days = _days(older_than)
    if as_json and not (dry_run or yes):
        raise InvalidInput(
            "--json does not ask whether to remove them.",
            field="yes",
            remedy="Say --yes, or look first with --dry-run.",
        )
    with Farm() as farm:
        told = farm.prune(days, dry_run=True)
        if not dry_run and told["batches"]:
            if not yes:
                typer.confirm(f"Remove {_what(told)}, for ever?", abort=True)
            told = farm.prune(days)
    if as_json:
        output.print_json(told)
        return
    would = "Would go" if dry_run else "Gone; files follow in time"
    output.console().print(f"{would}: {_what(told)}")


def keep(
    ids: Annotated[list[str], typer.Argument(metavar="BATCH...", help="Their numbers.")],
    no_longer: Annotated[bool, typer.Option("--no-longer", help="Let them go again.")] = False,
) -> None:
    """Keep batches, however old they become.

    Examples: farm keep 12 | farm keep 12 --no-longer
    """
    with Farm() as farm:
        for batch in [farm.batch(id) for id in ids]:
            batch.set_keep(not no_longer)
            told = "is kept for ever" if batch.data["keep"] else "goes when it is old"
            typer.echo(f"batch {batch.id} {told}")


def _days(age: str) -> float:
    found = _AGE.fullmatch(age)
    if not found:
        raise InvalidInput(
            f"--older-than {age!r} is not an age.",
            field="older_than",
            value=age,
            remedy="Write days or weeks, such as 90d or 12w.",
        )
    return int(found[1]) * _DAYS[found[2]]


def _what(told: dict[str, int]) -> str:
    batches = "1 batch" if told["batches"] == 1 else f"{told['batches']} batches"
    return f"{batches} with {told['images']} images, {output.size(told['bytes'])}"

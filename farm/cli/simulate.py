"""farm simulate: what would become of a trace of work, by which rules, on how many cards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from farm.dispatch.simulator.trace import Trace

NAMES = ("fifo", "warm-first", "pressure", "farm")
MADE_UP = ("cards", "jobs", "users", "checkpoints", "seed")
"""Options that say what trace is made up."""


def simulate(
    context: typer.Context,
    *,
    trace: Annotated[
        Path | None, typer.Option(help="A file with a trace; without, one is made up.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Write what this farm did of late as a trace, and exit.")
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, max=3650, help="To record.")] = 7.0,
    save: Annotated[
        Path | None, typer.Option(help="Write the made-up trace to a file as well.")
    ] = None,
    cards: Annotated[int, typer.Option(min=1, max=10_000, help="Of a made-up farm.")] = 100,
    jobs: Annotated[int, typer.Option(min=10, max=10_000_000, help="Roughly.")] = 100_000,
    users: Annotated[int, typer.Option(min=2, max=10_000)] = 60,
    checkpoints: Annotated[int, typer.Option(min=1, max=10_000)] = 40,
    seed: Annotated[int, typer.Option(help="Another one gives another trace.")] = 1,
    policy: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(NAMES)}; repeatable.")
    ] = None,
    workers: Annotated[
        list[str] | None,
        typer.Option(help="Cards more or fewer, such as +2; repeatable. By our rules."),
    ] = None,
    interval: Annotated[
        float, typer.Option(min=0.02, max=60, help="Seconds between cycles, at the least.")
    ] = 0.25,
    as_json: AsJson = False,
) -> None:
    """Run a trace of work through the dispatcher's own rules under a clock that jumps.

    Compares policies: first come first served, InvokeAI's (warm-first), SwarmUI's (pressure) and
    Farm's. Nothing is rendered, and no farm is needed but to record one (where FARM_DATABASE_URL
    is set, or `farm up` runs). Examples:

    farm simulate --cards 16 --jobs 10000

    farm simulate --record week.jsonl && farm simulate --trace week.jsonl --workers +2

    The table says when the last job ends, how many times the least that is; loads, how many times
    those of an exactly fair schedule; what half and 95 % of all jobs, and 95 % of the urgent ones,
    waited at most; how even users' shares were (1 is even); the longest that a job whose turn it
    was gave way to warmer ones.
    """
    if trace is not None:
        _refuse_beside_trace(context)
    if record is not None:
        typer.echo(f"{record}: {_record(record, days)} batches.")
        return
    from farm.dispatch.simulator.generator import mixed

    found = (
        _read(trace)
        if trace
        else mixed(cards=cards, jobs=jobs, users=users, checkpoints=checkpoints, seed=seed)
    )
    changes = [_change(each) for each in workers or ()]
    farms = [found, *map(found.with_cards, changes)]
    chosen = _chosen(policy, compared=not changes)
    if save is not None:
        _write(save, found)
    rows = []
    for row in _runs(farms, chosen, interval=interval):
        rows.append(row)
        if not as_json:
            typer.echo(f"{row['policy']}: done.", err=True)
    if as_json:
        output.print_json({"runs": rows})
    else:
        output.console().print(_table(found, rows))
        for row in rows:
            if row["left"]:
                never = f"{output.jobs(row['left'])} never ran"
                typer.echo(
                    f"{row['policy']}: {never}: no card took what is at their head.", err=True
                )


def _refuse_beside_trace(context: typer.Context) -> None:
    """What only a made-up trace heeds must not look as if it were heeded."""
    for name in (*MADE_UP, "save", "record"):
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise InvalidInput(
                f"--{name} says nothing about a trace that is read.",
                field=name,
                remedy="Leave it out; cards more or fewer are --workers +2 or -1.",
            )


def _chosen(names: Sequence[str] | None, *, compared: bool) -> Sequence[str]:
    for name in names or ():
        if name not in NAMES:
            raise InvalidInput(
                f"There is no policy {name!r}.",
                field="policy",
                value=name,
                remedy=f"Choose of {', '.join(NAMES)}.",
            )
    return names or (NAMES if compared else ("farm",))


def _change(written: str) -> int:
    try:
        if written[:1] not in "+-":
            raise ValueError
        return int(written)
    except ValueError:
        raise InvalidInput(
            f"workers: {written!r} is no number of cards more or fewer.",
            field="workers",
            value=written,
            remedy="Write +2 or -1.",
        ) from None


def _runs(
    farms: Sequence[Trace], chosen: Sequence[str], *, interval: float
) -> Iterator[dict[str, Any]]:
    from farm.dispatch.simulator import bounds
    from farm.dispatch.simulator.fluid import fair_loads
    from farm.dispatch.simulator.policies import policies
    from farm.dispatch.simulator.results import result
    from farm.dispatch.simulator.world import World

    for farm in farms:
        change = len(farm.cards) - len(farms[0].cards)
        least, fair = bounds.makespan(farm), fair_loads(farm)
        for name in chosen if farm is farms[0] else ("farm",):
            found = result(World(farm, policies(farm)[name], interval=interval).run())
            yield {
                "policy": f"{name} {change:+d}" if change else name,
                "cards": len(farm.cards),
                **asdict(found),
                "least_makespan": least,
                "least_loads": bounds.loads(farm, found.makespan),
                "fair_loads": fair,
            }


def _table(trace: Trace, rows: Sequence[dict[str, Any]]) -> Any:
    columns = (
        "policy",
        ">ends",
        ">x least",
        ">loads",
        ">x fair",
        ">p50",
        ">p95",
        ">urgent",
        ">Jain",
        ">passed",
    )
    first = rows[0]
    least = output.duration(first["least_makespan"])
    title = (
        f"{output.jobs(trace.jobs)}, users: {len(trace.users)}, cards: {len(trace.cards)}; "
        f"at the least {least}; fair loads: {first['fair_loads']}"
    )
    return output.table(title, columns, [_row(row) for row in rows])


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["policy"],
        output.duration(row["makespan"]),
        f"{row['makespan'] / max(row['least_makespan'], 1e-9):.3f}",
        str(row["loads"]),
        f"{row['loads'] / max(row['fair_loads'], 1):.2f}",
        output.duration(row["wait_p50"]),
        output.duration(row["wait_p95"]),
        output.duration(row["interactive_p95"]),
        "-" if row["jain"] is None else f"{row['jain']:.3f}",
        output.duration(row["longest_passed"]),
    )


def _record(target: Path, days: float) -> int:
    from farm.cli import database
    from farm.db.database import Database
    from farm.db.recording import record
    from farm.dispatch.simulator.recorder import trace_of
    from farm.settings import Settings

    with Database(database.needed(Settings()), max_size=1, name="farm simulate") as db:
        found = trace_of(record(db, days=days))
    _write(target, found)
    return len(found.batches)


def _write(target: Path, trace: Trace) -> None:
    from farm.dispatch.simulator.trace import lines

    try:
        with target.open("w") as file:
            file.writelines(f"{line}\n" for line in lines(trace))
    except OSError as error:
        raise InvalidInput(
            f"{target} cannot be written: {error.strerror}.",
            field="file",
            value=str(target),
            remedy="Name a file in a folder that exists and that you may write to.",
        ) from None


def _read(path: Path) -> Trace:
    from farm.dispatch.simulator.trace import read

    try:
        with path.open() as file:
            return read(file)
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.",
            field="trace",
            value=str(path),
            remedy="Write one with `farm simulate --record FILE` or `--save FILE`.",
        ) from None

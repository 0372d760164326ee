"""farm share: whose part of the farm is how large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from farm.cli import output


def share(
    name: Annotated[str | None, typer.Argument(help="A user; all are shown without.")] = None,
    *,
    weight: Annotated[
        float | None,
        typer.Option(min=0.001, max=1000, help="Their part, relative to others'; 1 at first."),
    ] = None,
    cap: Annotated[
        int | None, typer.Option(min=0, help="Most of their jobs that workers hold at once.")
    ] = None,
    no_cap: Annotated[bool, typer.Option("--no-cap", help="Take the cap away.")] = False,
    quota: Annotated[
        int | None, typer.Option(min=0, max=2**53, help="Most of their jobs that may wait.")
    ] = None,
    no_quota: Annotated[
        bool, typer.Option("--no-quota", help="What the farm allows everybody counts again.")
    ] = False,
) -> None:
    """Show or change users' parts of the farm; the dispatcher heeds it at once.

    Run it where FARM_DATABASE_URL is set. Example: farm share anna --weight 2 --cap 64
    """
    from farm.db import users
    from farm.db.database import Database
    from farm.settings import Settings

    with Database(Settings().required("database_url"), max_size=1, name="farm share") as db:
        if name is not None:
            users.set_share(
                db,
                name,
                weight=weight,
                cap=cap,
                uncap=no_cap,
                quota=quota,
                unquota=no_quota,
            )
        rows = [_row(row) for row in users.shares(db) if name in (None, row["name"])]
    columns = ("user", ">weight", ">cap", ">quota", ">waiting", "administrator")
    output.console().print(output.table("", columns, rows))


def _row(user: Mapping[str, Any]) -> tuple[Any, ...]:
    admin = "yes" if user["admin"] else ""
    numbers = (user["max_in_flight"], user["max_waiting"], user["waiting"])
    return user["name"], f"{user['weight']:g}", *numbers, admin

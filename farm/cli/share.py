"""farm share: whose part of the farm is how large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.client import Farm
from farm.errors import NotFound


def share(
    name: Annotated[str | None, typer.Argument(help="A user; all are shown without.")] = None,
    *,
    weight: Annotated[
        float | None,
        typer.Option(min=0.001, max=1000, help="Their part, relative to others'; 1 at first."),
    ] = None,
    cap: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, help="Most of their jobs that workers hold at once."),
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

    For administrators. Example: farm share anna --weight 2 --cap 64
    """
    limits = {"weight": weight, "cap": cap, "quota": quota}
    change: dict[str, float | None] = {n: each for n, each in limits.items() if each is not None}
    change |= {n: None for n, gone in (("cap", no_cap), ("quota", no_quota)) if gone}
    with Farm() as farm:
        if name is not None and change:
            farm.set_share(name, **change)
        rows = [_row(user) for user in farm.users() if name in (None, user["name"])]
    if name is not None and not rows:
        raise NotFound(
            f"There is no user {name[:100]}.",
            field="user",
            value=name,
            remedy="`farm share` lists them; `farm key NAME` makes one.",
        )
    columns = ("user", ">weight", ">cap", ">quota", ">waiting", "administrator")
    output.console().print(output.table("", columns, rows))


def _row(user: Mapping[str, Any]) -> tuple[Any, ...]:
    admin = "yes" if user["admin"] else ""
    return user["name"], f"{user['weight']:g}", user["cap"], user["quota"], user["waiting"], admin

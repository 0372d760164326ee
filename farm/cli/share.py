"""farm share: whose part of the farm is how large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from farm.cli import output
from farm.cli.output import AsJson
from farm.client import Farm
from farm.errors import NotFound

_COLUMNS = (
    "user",
    ">weight",
    ">cap",
    ">quota",
    ">waiting",
    ">for",
    ">waited",
    ">GPU time",
    "admin",
)


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
    as_json: AsJson = False,
) -> None:
    """Show or change users' parts of the farm; the dispatcher heeds it at once.

    Shown are how many jobs wait, and for how long the first of them; of what ended in the last ten
    minutes how long it had waited, as a median, and the GPU time that it took.

    For administrators. Example: farm share anna --weight 2 --cap 64
    """
    limits = {"weight": weight, "cap": cap, "quota": quota}
    change: dict[str, float | None] = {n: each for n, each in limits.items() if each is not None}
    change |= {n: None for n, gone in (("cap", no_cap), ("quota", no_quota)) if gone}
    with Farm() as farm:
        if name is not None and change:
            farm.set_share(name, **change)
        told = farm.shares()
    _show(told, name, as_json=as_json)


def _show(told: Mapping[str, Any], name: str | None, *, as_json: bool) -> None:
    """One user, or all of them and how equal their parts are."""
    users = [user for user in told["users"] if name in (None, user["name"])]
    if name is not None and not users:
        raise NotFound(
            f"There is no user {name[:100]}.",
            field="user",
            value=name,
            remedy="`farm share` lists them; `farm key NAME` makes one.",
        )
    if as_json:
        output.print_json({**told, "users": users})
        return
    screen = output.console()
    screen.print(output.table("", _COLUMNS, map(_row, users)))
    if name is None:
        screen.print(_fairness(told["fairness"]))


def _row(user: Mapping[str, Any]) -> tuple[Any, ...]:
    waits = (output.duration(user[wait]) for wait in ("longest_wait", "median_wait"))
    limits = (user["cap"], user["quota"], user["waiting"])
    had = output.duration(user["gpu_seconds"]) if user["gpu_seconds"] else None
    admin = "yes" if user["admin"] else ""
    return user["name"], f"{user['weight']:g}", *limits, *waits, had, admin


def _fairness(told: Mapping[str, Any]) -> str:
    minutes = f"{told['seconds'] / 60:.0f} minutes"
    if told["jain"] is None:
        return f"Shares are compared between users whose jobs have waited for {minutes}."
    return (
        f"Jain's index of the GPU time of {told['users']} users whose jobs have waited for "
        f"{minutes}: {told['jain']:.3f} (1 is equal)"
    )

"""farm key: API keys, for farms that more than one machine can reach."""

from __future__ import annotations

from typing import Annotated

import typer


def key(
    name: Annotated[str, typer.Argument(help="Whose key it is; batches are filed under it.")],
    admin: Annotated[bool, typer.Option("--admin", help="May change what is not theirs.")] = False,
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Withdraw all keys of theirs, and issue none.")
    ] = False,
) -> None:
    """Issue an API key and print it; it is not stored, and cannot be shown again.

    Run it where `farm up` runs or FARM_DATABASE_URL is set. The holder sets FARM_API_KEY to it.
    Examples: farm key anna | farm key anna --revoke
    """
    from farm.cli import database
    from farm.db import users
    from farm.db.database import Database
    from farm.settings import Settings

    with Database(database.needed(Settings()), max_size=1, name="farm key") as db:
        if revoke:
            typer.echo(f"Keys of {name} withdrawn: {users.revoke_keys(db, name)}.")
        else:
            typer.echo(users.create_key(db, name, admin=admin))

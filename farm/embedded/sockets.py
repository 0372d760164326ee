"""Where the embedded servers listen: Unix sockets in the farm's folder, never a port."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import quote

from farm.errors import SetupError

_LONGEST = 103  # bytes a socket's path may have: 107 on Linux, 103 on macOS


def folder(home: Path) -> Path:
    """The folder of the sockets: ``home/run``, or a short one in ``/tmp`` when that is too long."""
    run = home / "run"
    if len(os.fsencode(run / "postgres" / ".s.PGSQL.5432")) <= _LONGEST:
        return run
    name = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return Path(f"/tmp/farm-{os.geteuid()}-{name}")


def prepare(home: Path) -> Path:
    """Create :func:`folder`; nobody else may enter it.

    Raises:
        SetupError: it is there and belongs to someone else.
    """
    run = folder(home)
    run.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = run.lstat()
    if found.st_uid != os.geteuid() or run.is_symlink():
        raise SetupError(
            f"{run} belongs to user {found.st_uid}, so the servers' sockets are not safe there.",
            field="FARM_HOME",
            value=str(home),
            remedy="Remove it, or choose another FARM_HOME.",
        )
    return run


def postgres(home: Path) -> Path:
    """The folder of Postgres's socket."""
    return folder(home) / "postgres"


def valkey(home: Path) -> Path:
    """Valkey's socket."""
    return folder(home) / "valkey.sock"


def urls(home: Path) -> tuple[str, str]:
    """Where a farm's embedded servers are reached: ``(database_url, broker_url)``.

    The database's is for psycopg and SQLAlchemy, the broker's for Celery; redis-py knows the
    same socket as ``unix:///path``.
    """
    database = quote(str(postgres(home)), safe="")
    return (
        f"postgresql://postgres@/farm?host={database}",
        f"redis+socket://{quote(str(valkey(home)))}",
    )

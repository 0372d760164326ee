"""Which schema a database has, and which one this version needs: Alembic is only for changing it,
and takes longer to import than all else of a process that serves."""

from __future__ import annotations

from pathlib import Path

from farm.db.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
NEEDED = max(path.name.partition("_")[0] for path in MIGRATIONS.glob("versions/[0-9]*_*.py"))
"""The newest revision, by the names of the files that hold them."""


def is_current(db: Database) -> bool:
    """Whether the schema is the one this version needs."""
    if db.one("SELECT to_regclass('alembic_version') AS name") == {"name": None}:
        return False
    row = db.one("SELECT version_num FROM alembic_version")
    return row is not None and row["version_num"] == NEEDED

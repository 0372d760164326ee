from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from farm.db import users
from farm.db.database import Database
from farm.errors import InvalidInput


def farm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name[:5] != "FARM_"}
    return subprocess.run(
        [sys.executable, "-m", "farm.cli.main", *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_printed_key_opens_the_farm_and_is_not_stored(db: Database, database_url: str) -> None:
    done = farm("key", "anna", FARM_DATABASE_URL=database_url)
    assert done.returncode == 0, done.stderr
    issued = done.stdout.strip()
    found = users.for_key(db, issued)
    assert found
    assert found.name == "anna"
    assert users.for_key(db, issued[:-1]) is None
    stored = db.one("SELECT encode(sha256, 'hex') AS digest FROM api_keys")
    assert stored
    assert issued not in stored["digest"]


def test_a_key_needs_a_database_and_a_name(database_url: str, tmp_path: Path) -> None:
    assert "FARM_DATABASE_URL" in farm("key", "anna", FARM_HOME=str(tmp_path)).stderr
    refused = farm("key", " ", FARM_DATABASE_URL=database_url)
    assert refused.returncode == 2
    assert "1 to 100 characters" in refused.stderr


def test_a_key_that_leaked_is_withdrawn(db: Database, database_url: str) -> None:
    lost, others = users.create_key(db, "anna"), users.create_key(db, "bert")
    done = farm("key", "anna", "--revoke", FARM_DATABASE_URL=database_url)
    assert done.stdout == "Keys of anna withdrawn: 1.\n"
    assert users.for_key(db, lost) is None
    assert users.for_key(db, others)
    assert farm("key", "nobody", "--revoke", FARM_DATABASE_URL=database_url).returncode == 3


@pytest.mark.parametrize("name", ["", "a\nb", "\udcff", "x" * 101])
def test_who_cannot_be_called_so_gets_no_key(db: Database, name: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a user's name"):
        users.create_key(db, name)

"""Users and their API keys."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from farm.db.database import Database
from farm.errors import InvalidInput


@dataclass(frozen=True)
class User:
    id: int
    name: str


LOCAL = "local"

# The update of nothing makes the conflicting row come back, whichever process was first.
_ENSURE = """
INSERT INTO users (name) VALUES (%(name)s)
ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id, name
"""


def local(db: Database) -> User:
    """The only user of a local farm."""
    return _ensure(db, LOCAL)


def create_key(db: Database, name: str) -> str:
    """A new API key for user ``name``, who is created at need. It cannot be shown again."""
    if not name.strip() or len(name) > 100:
        raise InvalidInput(
            f"name: {name[:100]!r} cannot be a user's name.",
            field="name",
            value=name,
            remedy="Use 1 to 100 characters.",
        )
    key = "farm_" + secrets.token_urlsafe(32)
    user = _ensure(db, name)
    with db.connection() as connection:
        connection.execute(
            "INSERT INTO api_keys (sha256, user_id) VALUES (%s, %s)", (_digest(key), user.id)
        )
    return key


def for_key(db: Database, key: str) -> User | None:
    """The user who holds ``key``; None when nobody does."""
    row = db.one(
        """SELECT u.id, u.name FROM api_keys k JOIN users u ON u.id = k.user_id
           WHERE k.sha256 = %(digest)s""",
        {"digest": _digest(key)},
    )
    return User(**row) if row else None


def _ensure(db: Database, name: str) -> User:
    row = db.one(_ENSURE, {"name": name})
    assert row is not None
    return User(**row)


def _digest(key: str) -> bytes:
    # Keys are 256 random bits, so a plain hash is enough: there is nothing to guess.
    return hashlib.sha256(key.encode()).digest()

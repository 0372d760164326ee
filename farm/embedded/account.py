"""The account Postgres runs under: ours, except that it refuses to run as root."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from farm.errors import SetupError

_NAME = "embedded_postgres"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Account:
    """A user and a group that a process can be started as."""

    uid: int
    gid: int

    def own(self, folder: Path) -> None:
        """Make it the owner of a folder and all in it, unless it is."""
        if folder.stat().st_uid == self.uid:
            return
        os.chown(folder, self.uid, self.gid)
        for path in folder.rglob("*"):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def let_reach(self, path: Path) -> None:
        """Let it pass through the folders above ``path``, but not list them.

        Root's own folders are often closed; one bit on each is the least that works.
        """
        for folder in path.absolute().parents:
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH and folder.stat().st_uid != self.uid:
                _log.info("%s may now be passed through by other users (mode o+x)", folder)
                folder.chmod(mode | stat.S_IXOTH)

    def let_read(self, folder: Path) -> None:
        """Let it read and run what is in a folder as its owner may: a strict umask forbids it."""
        if not folder.exists() or folder.stat().st_mode & stat.S_IXOTH:
            return
        for path in (folder, *folder.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (mode & (stat.S_IRUSR | stat.S_IXUSR)) >> 6)


def account_for(data: Path) -> Account | None:
    """Who runs Postgres on ``data``; None: we do.

    As root it is whoever owns the data already, or a system user made for it.

    Raises:
        SetupError: we are root and that user cannot be made.
    """
    if os.geteuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        return Account(data.stat().st_uid, data.stat().st_gid)
    try:
        found = pwd.getpwnam(_NAME)
    except KeyError:
        found = _create()
    return Account(found.pw_uid, found.pw_gid)


def _create() -> pwd.struct_passwd:
    shell = shutil.which("nologin") or "/bin/false"
    try:
        subprocess.run(
            ["useradd", "--system", "--shell", shell, _NAME], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"").decode(errors="replace").strip() or error
        raise SetupError(
            f"PostgreSQL does not run as root, and the user {_NAME} cannot be made: {why}.",
            remedy="Run Farm as an ordinary user, or set FARM_DATABASE_URL to a server you run.",
        ) from None
    return pwd.getpwnam(_NAME)
